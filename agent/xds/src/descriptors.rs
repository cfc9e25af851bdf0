//! What Envoy's messages look like. `envoy.bin` is a `FileDescriptorSet`: of the crate `envoy-types` 0.7.7
//! (`src/generated/types.bin`) the files that a bootstrap reaches, without their comments.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prost_reflect::{DescriptorPool, MessageDescriptor};

pub(crate) const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";

static FILES: &[u8] = include_bytes!("envoy.bin");

/// Some 10 MB as long as it is kept, and so no longer than changes follow each other: an agent without a configuration
/// has none.
static KEPT: Mutex<Option<(DescriptorPool, Instant)>> = Mutex::new(None);
const KEPT_FOR: Duration = Duration::from_secs(60);

pub(crate) fn pool() -> DescriptorPool {
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let pool = kept.take().map_or_else(decode, |(pool, _)| pool);
    *kept = Some((pool.clone(), Instant::now()));
    pool
}

/// Lets go of what the next reading would have used, where none has come for a minute by `now`. Was there anything?
pub fn let_go(now: Instant) -> bool {
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let is_old = |(_, used): &mut (DescriptorPool, Instant)| now - *used >= KEPT_FOR;
    kept.take_if(is_old).is_some()
}

fn decode() -> DescriptorPool {
    DescriptorPool::decode(FILES).expect("the descriptors of this very build")
}

/// The message of an `Any`'s type URL.
pub(crate) fn by_url(pool: &DescriptorPool, url: &str) -> Option<MessageDescriptor> {
    let (_, name) = url.rsplit_once('/')?;
    pool.get_message_by_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_whole() {
        assert!(pool().get_message_by_name(BOOTSTRAP).is_some());
    }

    #[test]
    fn they_are_kept_for_a_minute() {
        assert!(pool() == pool());
        assert!(let_go(Instant::now() + 2 * KEPT_FOR));
        assert!(pool().get_message_by_name(BOOTSTRAP).is_some());
    }
}
