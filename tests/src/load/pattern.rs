//! Bytes that are known, so that each one can be checked.

/// Byte `n` of a transfer: repeats after a prime, so that no loss or swap of blocks goes unseen.
pub const PERIOD: u64 = 251;

/// As many bytes of the pattern as the largest read or write, from any place in its period.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length as u64 + PERIOD)
        .map(|at| (at % PERIOD) as u8)
        .collect()
}

/// Are these the bytes of a transfer from its byte `from` on? Compares blocks: the check must not be what is measured.
pub fn is_pattern(pattern: &[u8], bytes: &[u8], from: u64) -> bool {
    let at = (from % PERIOD) as usize;
    pattern.get(at..at + bytes.len()) == Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_byte_is_seen() {
        let mut bytes: Vec<u8> = (300..1300_u64).map(|at| (at % PERIOD) as u8).collect();
        let expected = pattern(1000);
        assert!(is_pattern(&expected, &bytes, 300));
        bytes.swap(10, 11);
        assert!(!is_pattern(&expected, &bytes, 300));
        assert!(!is_pattern(&expected, &bytes[1..], 300));
    }
}
