//! Numbers of 256 bits: targets, weights, and hashes that are compared with a target.
//!
//! The node has them as `Word256` (chainweb-node, `Chainweb/PowHash.hs`): 32 bytes little-endian in headers and JSON, big-endian
//! in the keys of cuts.

use std::cmp::Ordering;
use std::fmt;

use crate::chainweb::digest::Digest;

/// A number below 2^256.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Number([u64; 4]);

impl Number {
    /// 2^256 - 1.
    pub const MAX: Number = Number([u64::MAX; 4]);

    /// From 32 bytes, the least significant one first.
    pub fn from_le_bytes(bytes: [u8; 32]) -> Number {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Number(words)
    }

    /// From 32 bytes, the most significant one first.
    pub fn from_be_bytes(mut bytes: [u8; 32]) -> Number {
        bytes.reverse();
        Number::from_le_bytes(bytes)
    }

    /// 32 bytes, the least significant one first.
    pub fn to_le_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (bytes, word) in bytes.as_chunks_mut().0.iter_mut().zip(self.0) {
            *bytes = word.to_le_bytes();
        }
        bytes
    }

    /// 32 bytes, the most significant one first.
    pub fn to_be_bytes(self) -> [u8; 32] {
        let mut bytes = self.to_le_bytes();
        bytes.reverse();
        bytes
    }

    /// Parses base64url of the 32 bytes, the least significant one first, as in the JSON of the node.
    pub fn from_base64url(text: &str) -> Option<Number> {
        Digest::from_base64url(text).map(|bytes| Number::from_le_bytes(bytes.0))
    }

    /// The sum modulo 2^256, as the node adds weights.
    pub fn wrapping_add(self, other: Number) -> Number {
        let mut carry = false;
        Number(std::array::from_fn(|i| {
            let (sum, over) = self.0[i].overflowing_add(other.0[i]);
            let (sum, over_again) = sum.overflowing_add(u64::from(carry));
            carry = over | over_again;
            sum
        }))
    }

    /// The quotient, rounded down; `None` for a division by zero.
    pub fn checked_div(self, divisor: Number) -> Option<Number> {
        if divisor == Number::default() {
            return None;
        }
        let (mut quotient, mut rest) = (Number::default(), Number::default());
        for bit in (0..256).rev() {
            // The rest is below the divisor; if its highest bit is lost by the shift, it exceeds the divisor by that.
            let lost = rest.0[3] >> 63 == 1;
            rest = rest.wrapping_add(rest);
            rest.0[0] |= self.0[bit / 64] >> (bit % 64) & 1;
            if lost || rest >= divisor {
                rest = rest.wrapping_add(Number(divisor.0.map(|word| !word))).wrapping_add(Number([1, 0, 0, 0]));
                quotient.0[bit / 64] |= 1 << (bit % 64);
            }
        }
        Some(quotient)
    }
}

impl From<u64> for Number {
    fn from(number: u64) -> Number {
        Number([number, 0, 0, 0])
    }
}

impl Ord for Number {
    fn cmp(&self, other: &Number) -> Ordering {
        self.0.iter().rev().cmp(other.0.iter().rev())
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Number) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Number {
    /// As the node writes it: base64url of the 32 bytes, the least significant one first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Digest(self.to_le_bytes()).fmt(f)
    }
}

impl fmt::Debug for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Number({})", Digest(self.to_be_bytes()).to_hex())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wide(number: u128) -> Number {
        Number([number as u64, (number >> 64) as u64, 0, 0])
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_counts_as_u128_does(a: u128, b: u128) {
            prop_assert_eq!(wide(a).cmp(&wide(b)), a.cmp(&b));
            prop_assert_eq!(wide(a).checked_div(wide(b)), a.checked_div(b).map(wide));
            let (sum, carry) = a.overflowing_add(b);
            let mut expected = wide(sum);
            expected.0[2] = u64::from(carry);
            prop_assert_eq!(wide(a).wrapping_add(wide(b)), expected);
        }

        #[test]
        fn quotient_times_divisor_is_the_number(bytes: [u8; 32], zeros in 0_usize..31, small in 1..=u64::MAX) {
            let mut divisor = bytes;
            divisor[32 - zeros..].fill(0);
            divisor[0] |= 1;
            let (number, divisor) = (Number::from_le_bytes(bytes), Number::from_le_bytes(divisor));
            for divisor in [divisor, Number::from(small)] {
                let quotient = number.checked_div(divisor).unwrap();
                // By addition and doubling: product = quotient * divisor, at most the number, and less than a divisor below it.
                let mut product = Number::default();
                for bit in (0..256).rev() {
                    product = product.wrapping_add(product);
                    if quotient.0[bit / 64] >> (bit % 64) & 1 == 1 {
                        product = product.wrapping_add(divisor);
                    }
                }
                prop_assert!(product <= number);
                let next = product.wrapping_add(divisor);
                prop_assert!(next > number || next < product, "{number:?} / {divisor:?}");
            }
        }

        #[test]
        fn bytes_and_text_round_trip(bytes: [u8; 32]) {
            let number = Number::from_le_bytes(bytes);
            prop_assert_eq!(number.to_le_bytes(), bytes);
            prop_assert_eq!(Number::from_be_bytes(number.to_be_bytes()), number);
            prop_assert_eq!(Number::from_base64url(&number.to_string()), Some(number));
        }
    }

    #[test]
    fn the_largest_number() {
        assert_eq!(Number::MAX.checked_div(Number::MAX), Some(Number::from(1)));
        assert_eq!(Number::MAX.checked_div(Number::from(1)), Some(Number::MAX));
        assert_eq!(Number::MAX.checked_div(Number::default()), None);
        assert_eq!(Number::MAX.wrapping_add(Number::from(2)), Number::from(1));
    }
}
