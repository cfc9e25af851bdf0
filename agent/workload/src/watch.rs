//! Watching the API: this node's pods, and the labels of all namespaces.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt};
use kube::api::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use kube::{Client, Config};
use thiserror::Error;

use crate::judge::Rules;
use crate::object::{Namespace, Pod};
use crate::wish::{Discovered, PodUid, PodWish};

/// The server ends a watch after this many seconds, and it is begun anew where it was: a connection that died without
/// a word is noticed.
const WATCH: u32 = 120;
/// Nothing at all for so long: the connection is dead.
const SILENCE: Duration = Duration::from_secs(150);
const CONNECT: Duration = Duration::from_secs(5);
/// The first pause after a failure, and the longest; half to all of each.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(10)];
/// No failure for so long after one: the API is there again, though it had no news.
const CALM: Duration = Duration::from_secs(20);
/// A pod's copy of itself, which nobody here reads.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Why there is nothing to watch.
#[derive(Debug, Error)]
pub enum WatchError {
    #[error("the kubeconfig cannot be used")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    #[error("not in a pod with a service account, and no kubeconfig is given")]
    InCluster(#[from] kube::config::InClusterError),
    #[error("no client for the API can be made")]
    Client(#[from] kube::Error),
    #[error("nobody listens any more")]
    Unheard,
}

/// Watches for ever, and says what it sees to `tell`, which answers whether somebody listens.
///
/// # Errors
/// See [`WatchError`]; an API that cannot be reached is none.
pub async fn watch(
    rules: Rules,
    node: &str,
    mut tell: impl FnMut(Discovered) -> bool,
) -> Result<(), WatchError> {
    let client = client(&rules).await?;
    let ours = watcher::Config::default()
        .fields(&format!("spec.nodeName={node}"))
        .timeout(WATCH);
    let all = watcher::Config::default().timeout(WATCH);
    let mut pods = pin!(stream(Api::<Pod>::all(client.clone()), ours));
    let mut namespaces = pin!(stream(Api::<Namespace>::all(client), all));
    let mut seen = Seen::new(rules);
    let mut outage = Outage::default();
    loop {
        let mut news = Vec::new();
        let calm = outage.calm_at();
        tokio::select! {
            event = pods.next() => match event {
                Some(Ok(event)) => {
                    news.extend(outage.over(0));
                    seen.pod(event);
                }
                Some(Err(error)) => news.extend(outage.begun(0, &error)),
                None => return Err(WatchError::Unheard),
            },
            event = namespaces.next() => match event {
                Some(Ok(event)) => {
                    news.extend(outage.over(1));
                    seen.namespace(event);
                }
                Some(Err(error)) => news.extend(outage.begun(1, &error)),
                None => return Err(WatchError::Unheard),
            },
            () = until(calm) => news.extend(outage.calm()),
        }
        news.extend(seen.news());
        if !news.into_iter().all(&mut tell) {
            return Err(WatchError::Unheard);
        }
    }
}

async fn client(rules: &Rules) -> Result<Client, WatchError> {
    let mut config = match &rules.kubernetes.kubeconfig {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path)?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?
        }
        None => Config::incluster()?,
    };
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENCE);
    Ok(Client::try_from(config)?)
}

fn stream<K>(api: Api<K>, config: watcher::Config) -> impl Stream<Item = watcher::Result<Event<K>>>
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + 'static,
{
    watcher::watcher(api, config).backoff(Pauses(0))
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Longer and longer, never two nodes in step.
#[derive(Debug)]
struct Pauses(u32);

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let [first, longest] = PAUSES;
        let pause = (first * 2_u32.saturating_pow(self.0)).min(longest);
        self.0 = (self.0 + 1).min(8);
        Some(pause.mul_f64(0.5 + fastrand::f64() / 2.0))
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.0 = 0;
    }
}

/// Which of the two watches fail, and since when not again.
#[derive(Debug, Default)]
struct Outage {
    failing: [Option<Instant>; 2],
    told: String,
}

impl Outage {
    fn begun(&mut self, which: usize, error: &watcher::Error) -> Option<Discovered> {
        self.failing[which] = Some(Instant::now());
        let mut text = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !text.contains(&cause_text) {
                text = format!("{text}: {cause_text}");
            }
            source = cause.source();
        }
        text.truncate(text.floor_char_boundary(1000));
        if self.told == text {
            return None;
        }
        self.told.clone_from(&text);
        Some(Discovered::Outage(text))
    }

    fn over(&mut self, which: usize) -> Option<Discovered> {
        self.failing[which] = None;
        self.said_over()
    }

    fn calm_at(&self) -> Option<Instant> {
        self.failing.iter().flatten().min().map(|at| *at + CALM)
    }

    fn calm(&mut self) -> Option<Discovered> {
        for failing in &mut self.failing {
            if failing.is_some_and(|at| at.elapsed() >= CALM) {
                *failing = None;
            }
        }
        self.said_over()
    }

    fn said_over(&mut self) -> Option<Discovered> {
        let over = self.failing == [None, None] && !self.told.is_empty();
        over.then(|| {
            self.told.clear();
            Discovered::Connected
        })
    }
}

/// What the API has told, and what was made of it.
#[derive(Debug)]
struct Seen {
    rules: Rules,
    pods: Listing<Pod>,
    namespaces: Listing<Namespace>,
    /// `None` until both were listed whole.
    told: Option<BTreeMap<PodUid, PodWish>>,
}

/// Objects by uid or name; while they are listed anew, the old ones stand.
#[derive(Debug)]
struct Listing<K> {
    objects: BTreeMap<String, K>,
    anew: Option<BTreeMap<String, K>>,
    whole: bool,
}

impl<K> Listing<K> {
    fn new() -> Self {
        Self {
            objects: BTreeMap::new(),
            anew: None,
            whole: false,
        }
    }

    fn take(&mut self, event: Event<K>, key: impl Fn(&K) -> Option<String>) {
        match event {
            Event::Init => self.anew = Some(BTreeMap::new()),
            Event::InitApply(object) => {
                if let (Some(key), Some(anew)) = (key(&object), &mut self.anew) {
                    anew.insert(key, object);
                }
            }
            Event::InitDone => {
                self.objects = self.anew.take().unwrap_or_default();
                self.whole = true;
            }
            Event::Apply(object) => {
                if let Some(key) = key(&object) {
                    self.objects.insert(key, object);
                }
            }
            Event::Delete(object) => {
                if let Some(key) = key(&object) {
                    self.objects.remove(&key);
                }
            }
        }
    }
}

impl Seen {
    fn new(rules: Rules) -> Self {
        Self {
            rules,
            pods: Listing::new(),
            namespaces: Listing::new(),
            told: None,
        }
    }

    fn pod(&mut self, event: Event<Pod>) {
        let event = trimmed(event, |pod: &mut Pod| {
            pod.metadata.managed_fields = None;
            pod.metadata.owner_references = None;
            if let Some(annotations) = &mut pod.metadata.annotations {
                annotations.remove(LAST_APPLIED);
            }
        });
        self.pods.take(event, |pod| pod.metadata.uid.clone());
    }

    fn namespace(&mut self, event: Event<Namespace>) {
        let event = trimmed(event, |namespace: &mut Namespace| {
            namespace.metadata.managed_fields = None;
            namespace.metadata.annotations = None;
        });
        self.namespaces
            .take(event, |namespace| namespace.metadata.name.clone());
    }

    /// What is different from what was told.
    fn news(&mut self) -> Vec<Discovered> {
        if !(self.pods.whole && self.namespaces.whole) {
            return Vec::new();
        }
        let none = BTreeMap::new();
        let mut wishes = BTreeMap::new();
        for pod in self.pods.objects.values() {
            let namespace = pod.metadata.namespace.as_ref();
            let namespace = namespace.and_then(|name| self.namespaces.objects.get(name));
            let labels = namespace.and_then(|namespace| namespace.metadata.labels.as_ref());
            if let Some(wish) = self.rules.judge(pod, labels.unwrap_or(&none)) {
                wishes.insert(wish.uid.clone(), wish);
            }
        }
        let first = self.told.is_none();
        let told = self.told.take().unwrap_or_default();
        let mut news = Vec::new();
        if first {
            news.push(Discovered::Begin);
        }
        let gone: BTreeSet<&PodUid> = told
            .keys()
            .filter(|uid| !wishes.contains_key(*uid))
            .collect();
        news.extend(gone.into_iter().cloned().map(Discovered::Gone));
        let changed = wishes
            .values()
            .filter(|wish| told.get(&wish.uid) != Some(*wish));
        news.extend(changed.cloned().map(Discovered::Pod));
        if first {
            news.push(Discovered::Complete);
        }
        self.told = Some(wishes);
        news
    }
}

fn trimmed<K>(event: Event<K>, trim: impl Fn(&mut K)) -> Event<K> {
    let less = |mut object| {
        trim(&mut object);
        object
    };
    match event {
        Event::Apply(object) => Event::Apply(less(object)),
        Event::Delete(object) => Event::Delete(less(object)),
        Event::InitApply(object) => Event::InitApply(less(object)),
        Event::Init | Event::InitDone => event,
    }
}
