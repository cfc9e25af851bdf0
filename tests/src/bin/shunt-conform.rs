//! What programs see of their sockets, run inside pods. See `shunt_tests::conform`.

fn main() -> anyhow::Result<()> {
    shunt_tests::conform::run()
}
