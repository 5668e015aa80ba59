//! The byte-level alphabet of GPT-2: every byte written as one printable character.
//!
//! Printable Latin-1 characters stand for themselves, the other 68 bytes for U+0100 onwards in order
//! (`bytes_to_unicode` of GPT-2's encoder).

/// Whether a byte stands for itself.
const fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

/// The byte that a character of the alphabet stands for.
pub(super) fn byte_of(c: char) -> Option<u8> {
    if let Ok(byte) = u8::try_from(u32::from(c)) {
        return is_printable(byte).then_some(byte);
    }
    let nth = usize::try_from(u32::from(c) - 256).ok()?;
    (0..=255u8).filter(|&b| !is_printable(b)).nth(nth)
}

/// What the byte-level decoder makes of one token: its bytes if every character is of the alphabet, the
/// text itself otherwise; bytes that are not UTF-8 become U+FFFD.
pub(super) fn decode(token: &str) -> String {
    let bytes: Option<Vec<u8>> = token.chars().map(byte_of).collect();
    match bytes {
        Some(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        None => token.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_a_bijection() {
        let mut bytes: Vec<u8> = (0..0x200)
            .filter_map(char::from_u32)
            .filter_map(byte_of)
            .collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
        assert_eq!(byte_of('\u{143}'), Some(0xad));
        assert_eq!(byte_of('\u{144}'), None);
        assert_eq!(byte_of(' '), None);
    }

    #[test]
    fn tokens_decode_as_the_tokenizers_do() {
        assert_eq!(decode("<|im_end|>"), "<|im_end|>");
        assert_eq!(decode("Ġhi"), " hi");
        assert_eq!(decode("a b"), "a b");
        assert_eq!(decode("<｜x｜>"), "<｜x｜>");
        assert_eq!(decode("é"), "\u{fffd}");
    }
}
