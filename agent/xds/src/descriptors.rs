//! What Envoy's messages look like. `envoy.bin` is a `FileDescriptorSet`: of the crate `envoy-types` 0.7.7
//! (`src/generated/types.bin`) the files that a bootstrap reaches, without their comments.

use prost_reflect::{DescriptorPool, MessageDescriptor};

pub(crate) const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";

static FILES: &[u8] = include_bytes!("envoy.bin");

/// Some 10 MB as long as it lives, and so made for each configuration anew: an agent without one has none.
#[cfg(not(fuzzing))]
pub(crate) fn pool() -> DescriptorPool {
    decode()
}

/// Thousands of configurations in a second.
#[cfg(fuzzing)]
pub(crate) fn pool() -> DescriptorPool {
    static POOL: std::sync::LazyLock<DescriptorPool> = std::sync::LazyLock::new(decode);
    POOL.clone()
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
}
