//! Watching the API: this node's pods, and the labels of all namespaces.

mod client;
mod outage;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Instant;

use futures_util::{Stream, StreamExt};
use kube::Client;
use kube::api::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};

use self::client::Credentials;
use self::outage::{Outage, Pauses};
use crate::judge::Rules;
use crate::object::{Namespace, Pod};
use crate::wish::{Discovered, PodUid, PodWish};

/// The server ends a watch after this many seconds, and it is begun anew where it was: a connection that died without
/// a word is noticed.
const WATCH: u32 = 120;
/// A pod's copy of itself, which nobody here reads.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Watches until `tell`, which is told what was seen, answers that nobody listens any more. An API that cannot be reached
/// is told, and tried again; with what its credentials are by then.
pub async fn watch(rules: Rules, node: &str, mut tell: impl FnMut(Discovered) -> bool) {
    let kubernetes = rules.kubernetes.clone();
    let mut seen = Seen::new(rules);
    let mut outage = Outage::default();
    let mut pauses = Pauses::default();
    loop {
        let credentials = Credentials::now(&kubernetes);
        match client::make(&kubernetes).await {
            Ok(client) => {
                pauses.reset();
                let renewed = || Credentials::now(&kubernetes) != credentials;
                let followed = follow(client, node, &mut seen, &mut outage, renewed, &mut tell);
                if followed.await == Ended::Unheard {
                    return;
                }
            }
            Err(error) => {
                if !outage.begun(0, &error).into_iter().all(&mut tell) {
                    return;
                }
                tokio::time::sleep(pauses.pause()).await;
            }
        }
    }
}

/// Why a client is of no use any more.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// The API failed, and there are other credentials than the client has.
    Renewed,
    Unheard,
}

async fn follow(
    client: Client,
    node: &str,
    seen: &mut Seen,
    outage: &mut Outage,
    renewed: impl Fn() -> bool,
    tell: &mut impl FnMut(Discovered) -> bool,
) -> Ended {
    let ours = watcher::Config::default()
        .fields(&format!("spec.nodeName={node}"))
        .timeout(WATCH);
    let all = watcher::Config::default().timeout(WATCH);
    let mut pods = pin!(stream(Api::<Pod>::all(client.clone()), ours));
    let mut namespaces = pin!(stream(Api::<Namespace>::all(client), all));
    loop {
        let mut news = Vec::new();
        let mut failed = false;
        let calm = outage.calm_at();
        tokio::select! {
            event = pods.next() => match event {
                Some(Ok(event)) => {
                    if is_answer(&event) {
                        news.extend(outage.over(0));
                    }
                    seen.pod(event);
                }
                Some(Err(error)) => {
                    news.extend(outage.begun(0, &error));
                    failed = true;
                }
                None => return Ended::Unheard,
            },
            event = namespaces.next() => match event {
                Some(Ok(event)) => {
                    if is_answer(&event) {
                        news.extend(outage.over(1));
                    }
                    seen.namespace(event);
                }
                Some(Err(error)) => {
                    news.extend(outage.begun(1, &error));
                    failed = true;
                }
                None => return Ended::Unheard,
            },
            () = until(calm) => news.extend(outage.calm()),
        }
        news.extend(seen.news());
        if !news.into_iter().all(&mut *tell) {
            return Ended::Unheard;
        }
        if failed && renewed() {
            tracing::info!("the credentials for the Kubernetes API were renewed");
            return Ended::Renewed;
        }
    }
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
    watcher::watcher(api, config).backoff(Pauses::default())
}

/// A list's beginning is said before the API is asked for it.
fn is_answer<K>(event: &Event<K>) -> bool {
    !matches!(event, Event::Init)
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
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
