//! Connections without end, while something changes.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::script::Script;
use crate::world::Pod;

/// Connects from two threads, again and again. Counts what was said, or the name of the exception, under the word that it
/// was told last; a connection that began under another word than it ended counts as `between`. Prints how many have
/// ended under this word when it is told a number, and not before there are so many.
const LOAD: &str = r#"
import collections, json, socket, sys, threading, time
to, word, counts = (sys.argv[1], int(sys.argv[2])), 'between', collections.Counter()
changed, ended = threading.Condition(), threading.Event()
def load():
    while not ended.is_set():
        began = word
        try:
            with socket.create_connection(to, 10) as server:
                said = b''.join(iter(lambda: server.recv(100), b'')).decode()
        except OSError as error:
            said = type(error).__name__
        with changed:
            counts[(word if began == word else 'between') + ' ' + said] += 1
            changed.notify_all()
        time.sleep(0.004)
threads = [threading.Thread(target=load) for _ in range(2)]
for thread in threads: thread.start()
def here(): return sum(count for what, count in counts.items() if what.startswith(word + ' '))
for line in sys.stdin:
    with changed:
        if line.strip().isdigit():
            wanted = here() + int(line)
            changed.wait_for(lambda: here() >= wanted, 20)
            print(here(), flush=True)
        else:
            word = line.strip()
            print('ok', flush=True)
ended.set()
for thread in threads: thread.join()
print(json.dumps(counts), flush=True)
"#;

/// A load in a pod; killed when dropped.
#[derive(Debug)]
pub struct Ongoing(Script);

impl Ongoing {
    /// Counts as `between` at first.
    pub fn start(pod: &Pod, to: SocketAddr) -> Self {
        let (ip, port) = (to.ip().to_string(), to.port().to_string());
        Self(Script::start(pod, LOAD, &[&ip, &port]))
    }

    /// Connections that begin from now on count under this word.
    ///
    /// # Panics
    /// The load has ended.
    pub fn call(&mut self, word: &str) {
        self.0.tell(word);
        assert_eq!(self.0.says(), "ok");
    }

    /// Waits until so many more have ended that began under this word.
    ///
    /// # Panics
    /// They do not.
    pub fn goes_on(&mut self, connections: u64) {
        self.0.tell(&connections.to_string());
        let ended: u64 = self.0.says().parse().expect("a number");
        assert!(ended >= connections, "only {ended} connections");
    }

    /// Ends it: how often there was what, as `WORD WHAT`.
    ///
    /// # Panics
    /// It does not end.
    pub fn counts(mut self) -> BTreeMap<String, u64> {
        self.0.told_all();
        serde_json::from_str(&self.0.says()).expect("counts")
    }
}
