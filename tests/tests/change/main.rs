//! The node changes all the time: workloads, policies and modes under load, pods by the dozen, namespaces that vanish.

mod live;
