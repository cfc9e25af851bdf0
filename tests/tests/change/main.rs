//! The node changes all the time: workloads, policies and modes under load, pods by the dozen, namespaces that vanish.

mod churn;
mod live;
mod vanish;

#[expect(clippy::print_stdout, reason = "what a long run has seen")]
fn tell(text: &str) {
    println!("{text}");
}
