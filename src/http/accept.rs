//! Whether a client prefers JSON to plain text, by its `Accept` (RFC 9110, 12.4.2 and 12.5.1).
//!
//! The answer of the contract is a word of text. So JSON is for clients that give `application/json` a higher weight than
//! `text/plain`, or do not accept text; with equal weights, or if a client accepts neither, the answer is text. If several ranges
//! match, the most specific one counts, whatever its weight. A range with an invalid weight is ignored.
//!
//! # Limitations
//! Parameters of a media type (`charset`, `indent`) are treated as preferences: a range with a parameter matches, but a range
//! without one has precedence.

/// How closely a range describes a media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Match {
    /// `*/*`
    Any,
    /// `text/*`
    Type,
    /// `text/plain;format=flowed`
    WithParameters,
    /// `text/plain`, or with the charset that we send.
    Exact,
}

/// Whether `application/json` is preferred to `text/plain`. `accept` are the values of all `Accept` headers.
pub(crate) fn prefers_json<'a>(accept: impl Iterator<Item = &'a str>) -> bool {
    let (mut json, mut text) = (None, None);
    for range in accept.flat_map(|value| split(value, ',')) {
        let Some((range, weight)) = weighted(range) else { continue };
        for (best, media_type) in [(&mut json, "application/json"), (&mut text, "text/plain")] {
            *best = (*best).max(matches(&range, media_type).map(|how| (how, weight)));
        }
    }
    let weight = |best: Option<(Match, u16)>| best.map_or(0, |(_, weight)| weight);
    weight(json) > weight(text)
}

/// A range of media types in the header.
struct Range<'a> {
    media_type: &'a str,
    /// Parameters other than the weight and our own charset.
    has_parameters: bool,
}

/// A range and its weight in thousandths; `None` if the weight is invalid.
fn weighted(text: &str) -> Option<(Range<'_>, u16)> {
    let mut parts = split(text, ';');
    let mut range = Range { media_type: parts.next().unwrap_or_default().trim(), has_parameters: false };
    let mut weight = 1000;
    for parameter in parts {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let (name, value) = (name.trim(), value.trim().trim_matches('"'));
        if name.eq_ignore_ascii_case("q") {
            // After the weight come extensions of the header, not parameters of the type.
            weight = thousandths(value)?;
            break;
        }
        let is_ours = name.eq_ignore_ascii_case("charset") && value.eq_ignore_ascii_case("utf-8");
        range.has_parameters |= !is_ours && !name.is_empty();
    }
    Some((range, weight))
}

/// `0.25`, `1`, `.5`: a number from 0 to 1.
fn thousandths(text: &str) -> Option<u16> {
    let is_plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let value: f32 = text.parse().ok().filter(|value| is_plain && *value <= 1.0)?;
    Some((value * 1000.0).round() as u16)
}

fn matches(range: &Range, media_type: &str) -> Option<Match> {
    let (kind, _) = media_type.split_once('/')?;
    let (range_kind, range_subtype) = range.media_type.split_once('/').unwrap_or((range.media_type, "*"));
    if range.media_type.eq_ignore_ascii_case(media_type) {
        return Some(if range.has_parameters { Match::WithParameters } else { Match::Exact });
    }
    match (range_kind, range_subtype) {
        // Java's own client sends a single `*`.
        ("*", "*") => Some(Match::Any),
        (_, "*") if range_kind.eq_ignore_ascii_case(kind) && range.media_type.contains('/') => Some(Match::Type),
        _ => None,
    }
}

/// Splits at each separator that is not in quotes.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    text.split(move |c| {
        let was_escaped = is_escaped;
        is_escaped = is_quoted && c == '\\' && !was_escaped;
        is_quoted ^= c == '"' && !was_escaped;
        c == separator && !is_quoted
    })
}

#[cfg(test)]
mod tests {
    use super::prefers_json;

    fn json(accept: &str) -> bool {
        prefers_json([accept].into_iter())
    }

    #[test]
    fn json_is_for_clients_that_prefer_it() {
        for accept in [
            "application/json",
            "APPLICATION/JSON",
            " application/json ; q=0.1 ",
            "application/json;charset=utf-8",
            "application/json; charset=\"UTF-8\"",
            "application/json;indent=4",
            "application/*",
            "Application/*;q=0.001",
            "text/html, application/json;q=0.9",
            "application/json, text/plain;q=0.9, */*;q=0.8",
            "text/plain;q=0.9,application/json",
            "application/json, */*;q=0.5",
            "*/*;q=0.5, application/json",
            "application/json, text/*;q=0.9",
            "*/*, text/plain;q=0",
            "*/*, text/*;q=0",
            "text/plain;q=0, application/json;q=0.1",
            "text/*, text/plain;q=0.1, application/json;q=0.2",
            "text/plain;format=flowed, text/plain;q=0.1, application/json;q=0.2",
            "application/json, text/plain;q=high",
            "application/json, text/plain;q=0.999",
            "x/y;a=\"text/plain,\\\"text/plain\", application/json",
            ", ,application/json,",
            "application/json;q=1;text/plain",
        ] {
            assert!(json(accept), "{accept}");
        }
        assert!(prefers_json(["text/plain;q=0.5", "application/json"].into_iter()), "several headers are one list");
    }

    #[test]
    fn the_word_of_the_contract_is_for_all_others() {
        for accept in [
            "",
            " ",
            ",",
            "*/*",
            "*",
            "text/plain",
            "text/*",
            "text/html",
            "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2",
            // JavaScript clients send this.
            "application/json, text/plain, */*",
            "application/json, text/plain",
            "text/plain,application/json",
            "application/json;q=0.5, text/plain;q=0.5",
            "application/json;q=0.5, text/plain;q=0.500, */*;q=0.1",
            "application/json;q=0.8, text/*;q=0.9",
            "application/json;q=0.4, */*;q=0.5",
            "application/json;q=0",
            "application/json;q=0.000, application/*",
            "application/*;q=0.9, */*",
            "application/json;q=high",
            "application/json;q=2",
            "application/json;q=-1",
            "application/json;q=NaN",
            "application/json;q=1e-1",
            "application/json;q=",
            "application/jsonp",
            "application/json-seq",
            "application/problem+json",
            "application",
            "json",
            "/",
            "application/json/x",
            "x/y;a=\", application/json\"",
            "x/y;a=\"\\\", application/json\"",
        ] {
            assert!(!json(accept), "{accept}");
        }
        assert!(!prefers_json(std::iter::empty()));
    }
}
