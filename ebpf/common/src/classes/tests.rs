use super::*;

fn seen(reads: &[u32]) -> Class {
    let mut class = Class::default();
    for reads in reads {
        class.reads = class.average(*reads);
        class.good += 1;
    }
    class
}

#[test]
fn a_class_is_proven_by_enough_connections_that_are_not_short() {
    assert_eq!(seen(&[20; 7]).verdict(), Verdict::Learning);
    assert_eq!(seen(&[20; 8]).verdict(), Verdict::Proven);
    assert_eq!(seen(&[3; 8]).verdict(), Verdict::Short);
    // One that goes on for long does not make the others long, and the average follows what is usual.
    assert_eq!(
        seen(&[3, 3, 3, 3, 3, 3, 3, 1_000_000]).verdict(),
        Verdict::Short
    );
    assert_eq!(seen(&[[3; 8], [32; 8]].concat()).verdict(), Verdict::Proven);
    assert_eq!(
        seen(&[[32; 8], [32; 8], [3; 8], [3; 8]].concat()).verdict(),
        Verdict::Short
    );
}

#[test]
fn a_fault_outweighs_everything() {
    let mut class = seen(&[32; 100]);
    class.fault = fault::BLOCKING;
    assert_eq!(class.verdict(), Verdict::Fault);
    assert!(!class.verdict().accelerates() && !class.verdict().is_watched());
}

#[test]
fn a_wish_is_found_among_other_bits() {
    for wish in [Wish::Off, Wish::Always, Wish::Auto] {
        assert_eq!(Wish::of(wish.bits()), wish);
        assert_eq!(
            Wish::of(wish.bits() | Workload::DIRECT | Workload::FAIL_CLOSED),
            wish
        );
    }
}

#[test]
fn no_map_type_has_padding() {
    assert_eq!(size_of::<ClassKey>(), 4 + 2 + 2);
    assert_eq!(size_of::<Class>(), 4 * 4 + 8 + 16 + 4 + 4);
}
