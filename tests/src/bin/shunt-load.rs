//! Load for tests, run inside pods. See `shunt_tests::load`.

fn main() -> anyhow::Result<()> {
    shunt_tests::load::run()
}
