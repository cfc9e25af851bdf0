//! Whatever stands in the file, it is refused or understood: nothing panics.

use proptest::prelude::*;

use super::{PROXY, read};

/// What a field may be given by mistake.
const ODD: [&str; 12] = [
    "~",
    "-1",
    "99999999999999999999",
    "[]",
    "{}",
    "[{}]",
    "\"\"",
    "{a: b}",
    "1.5",
    "true",
    "[[[]]]",
    "'%REQ('",
];

fn places() -> Vec<(usize, usize)> {
    // The values that stand alone after a colon, on the lines of the text.
    let mut places = Vec::new();
    let mut at = 0;
    while let Some(found) = PROXY[at..].find(": ") {
        let start = at + found + 2;
        let length = PROXY[start..].find([',', '}', ']', '\n']).unwrap_or(0);
        if length > 0 {
            places.push((start, start + length));
        }
        at = start;
    }
    places
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn odd_values_are_refused_or_understood(choices in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..4)) {
        let places = places();
        let mut text = PROXY.to_owned();
        let mut chosen: Vec<_> = choices.iter().map(|(place, odd)| (*place.get(&places), *odd.get(&ODD))).collect();
        chosen.sort_unstable();
        chosen.dedup_by_key(|(place, _)| *place);
        for ((start, end), odd) in chosen.into_iter().rev() {
            text.replace_range(start..end, odd);
        }
        let _ = read(&text);
    }

    #[test]
    fn pieces_cut_out_are_refused_or_understood(start in 0..PROXY.len(), length in 0..200_usize) {
        let end = (start + length).min(PROXY.len());
        let _ = read(&[&PROXY[..start], &PROXY[end..]].concat());
    }
}
