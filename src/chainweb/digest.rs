//! A hash of 32 bytes: of a block, a payload, a cut. As text it is base64url without padding, as the node writes it.

use std::fmt;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER, HEXLOWER_PERMISSIVE};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A hash of 32 bytes; its order is that of the bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The number of its bytes.
    pub const BYTES: usize = 32;

    /// `None` unless there are 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Digest> {
        bytes.try_into().ok().map(Digest)
    }

    /// Parses base64url without padding, 43 characters: the form in the JSON of the node (chainweb-node,
    /// `Chainweb/BlockHash.hs`).
    pub fn from_base64url(text: &str) -> Option<Digest> {
        Digest::from_slice(&BASE64URL_NOPAD.decode(text.as_bytes()).ok()?)
    }

    /// Parses 64 hexadecimal digits, upper or lower case.
    pub fn from_hex(text: &str) -> Option<Digest> {
        Digest::from_slice(&HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?)
    }

    /// 64 hexadecimal digits, lower case: the form in our records.
    pub fn to_hex(self) -> String {
        HEXLOWER.encode(&self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64URL_NOPAD.encode(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = String::deserialize(deserializer)?;
        Digest::from_base64url(&text).ok_or_else(|| de::Error::custom(format!("{text:?} is not a hash in base64url")))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const TEXT: &str = "k0an0qEORusqQg9ZjKrxa-0Bo0-hQVYLXqWi5LHxg3k";
    const HEX: &str = "9346a7d2a10e46eb2a420f598caaf16bed01a34fa141560b5ea5a2e4b1f18379";

    #[test]
    fn the_same_hash_in_both_texts() {
        let digest = Digest::from_base64url(TEXT).unwrap();
        assert_eq!((digest.to_string(), digest.to_hex()), (TEXT.to_owned(), HEX.to_owned()));
        assert_eq!(Digest::from_hex(&HEX.to_uppercase()), Some(digest));
        let json = serde_json::to_string(&digest).unwrap();
        assert_eq!((json.as_str(), serde_json::from_str(&json).ok()), (format!("\"{TEXT}\"").as_str(), Some(digest)));
    }

    #[test]
    fn other_texts_are_none() {
        // The last character has bits that belong to no byte, or is padding; the text is too short or too long.
        for text in [&format!("{}l", &TEXT[..42]), &format!("{}=", &TEXT[..42]), &TEXT[1..], &format!("{TEXT}A"), ""] {
            assert_eq!(Digest::from_base64url(text), None, "{text}");
            assert!(serde_json::from_str::<Digest>(&format!("\"{text}\"")).is_err(), "{text}");
        }
        for text in [&HEX[1..], &HEX[2..], &format!("{HEX}00"), "", &HEX.replace('9', "x")] {
            assert_eq!(Digest::from_hex(text), None, "{text}");
        }
    }
}
