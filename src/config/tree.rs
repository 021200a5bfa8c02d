//! Parses the text of a configuration file, JSON or YAML, into one kind of tree. `config` interprets the keys.
//!
//! Invariants: no text makes this file panic, recurse without bound or use more memory than a small multiple of the text's size;
//! an alias shares the node that it names, and copies nothing.

use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use yaml_rust2::parser::{Event, Parser};
use yaml_rust2::scanner::{Marker, TScalarStyle};

/// The largest configuration file that is read; a node's whole file has about 5 KB.
pub const FILE_BYTES_MAX: usize = 1 << 20;
/// The deepest nesting in a YAML file (serde_json has its own limit of 128).
const DEPTH_MAX: usize = 64;
/// How many characters of a text from outside an error message repeats.
pub(crate) const QUOTE_CHARS_MAX: usize = 60;

/// Quotes text from outside for a message: one line, short, in backquotes.
pub(crate) fn quote(text: &str) -> String {
    let shown: String = text.chars().take(QUOTE_CHARS_MAX).flat_map(char::escape_debug).collect();
    format!("`{shown}{}`", if text.chars().count() > QUOTE_CHARS_MAX { "…" } else { "" })
}

/// A node of the tree. Mappings keep duplicate keys: only the lookup of a key can tell whether they matter.
#[derive(Debug)]
pub(crate) enum Node {
    /// A scalar without quotes, not interpreted yet: its type depends on its key.
    Plain(String),
    /// A scalar in quotes, or a block.
    Text(String),
    List(Vec<Rc<Node>>),
    Map(Vec<(String, Rc<Node>)>),
}

pub(crate) type Entries = [(String, Rc<Node>)];
/// The error of every step below: a message without the file's name.
pub(crate) type Said<T> = std::result::Result<T, String>;

impl Node {
    pub(crate) fn is_null(&self) -> bool {
        matches!(self, Node::Plain(p) if matches!(p.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    pub(crate) fn as_bool(&self) -> Option<bool> {
        let Node::Plain(plain) = self else { return None };
        match plain.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" => Some(true),
            "false" | "no" | "off" | "n" => Some(false),
            _ => None,
        }
    }

    pub(crate) fn is_number(&self) -> bool {
        // Rust parses `inf` and `nan` as numbers; here they are words.
        matches!(self, Node::Plain(p) if p.contains(|c: char| c.is_ascii_digit()) && p.parse::<f64>().is_ok())
    }

    /// Whether it is a truth value or a number in quotes.
    pub(crate) fn is_quoted_scalar(&self) -> bool {
        let Node::Text(text) = self else { return false };
        let plain = Node::Plain(text.clone());
        plain.as_bool().is_some() || plain.is_number()
    }

    /// Describes the node, for a message.
    pub(crate) fn found(&self) -> String {
        match self {
            Node::Map(_) => "a mapping".to_string(),
            Node::List(_) => "a list".to_string(),
            Node::Plain(p) if self.as_bool().is_some() => format!("the truth value {}", quote(p)),
            Node::Plain(p) if self.is_number() => format!("the number {}", quote(p)),
            Node::Plain(t) | Node::Text(t) => format!("the text {}", quote(t)),
        }
    }
}

/// Parses a text; `None` if it is empty or null.
pub(crate) fn tree(text: &str) -> Said<Option<Rc<Node>>> {
    if text.len() > FILE_BYTES_MAX {
        return Err(format!("the file has {} bytes, at most {FILE_BYTES_MAX} are allowed", text.len()));
    }
    let text = text.trim_start_matches('\u{feff}');
    let root = if text.trim_start().starts_with('{') {
        // serde_json's message ends with line and column.
        Some(Rc::new(serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))?))
    } else {
        yaml_tree(text)?
    };
    Ok(root.filter(|root| !root.is_null()))
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Node, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> std::result::Result<Node, E> {
        Ok(Node::Plain("null".to_string()))
    }

    fn visit_bool<E>(self, v: bool) -> std::result::Result<Node, E> {
        Ok(Node::Plain(v.to_string()))
    }

    fn visit_i64<E>(self, v: i64) -> std::result::Result<Node, E> {
        Ok(Node::Plain(v.to_string()))
    }

    fn visit_u64<E>(self, v: u64) -> std::result::Result<Node, E> {
        Ok(Node::Plain(v.to_string()))
    }

    fn visit_f64<E>(self, v: f64) -> std::result::Result<Node, E> {
        // `Debug` keeps the point: 1849.0 must not pass for a whole number.
        Ok(Node::Plain(format!("{v:?}")))
    }

    fn visit_str<E>(self, v: &str) -> std::result::Result<Node, E> {
        Ok(Node::Text(v.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element::<Node>()? {
            items.push(Rc::new(item));
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, node)) = map.next_entry()? {
            entries.push((key, Rc::new(node)));
        }
        Ok(Node::Map(entries))
    }
}

/// A list or mapping of which the end has not been read.
struct Open {
    is_map: bool,
    /// The items of a list; for a mapping, keys and values in turn.
    items: Vec<Rc<Node>>,
    anchor: usize,
    height: usize,
}

/// Parses a YAML text. This does not use yaml-rust2's own loader, which recurses without bound and copies the node of an alias.
fn yaml_tree(text: &str) -> Said<Option<Rc<Node>>> {
    let at = |mark: Marker, message: &str| format!("{message} at line {} column {}", mark.line(), mark.col() + 1);
    let too_deep = format!("nested deeper than {DEPTH_MAX} levels");
    let mut parser = Parser::new(text.chars());
    let mut root = None;
    let mut open: Vec<Open> = Vec::new();
    let mut anchors = HashMap::new();
    loop {
        let (event, mark) = parser.next_token().map_err(|e| format!("not YAML: {}", at(*e.marker(), e.info())))?;
        let is_map = matches!(event, Event::MappingStart(..));
        let (node, height, anchor) = match event {
            Event::StreamEnd => return Ok(root),
            Event::DocumentStart if root.is_some() => {
                return Err(at(mark, "a second document begins: keep one, or use one file for each"));
            }
            Event::StreamStart | Event::DocumentStart | Event::DocumentEnd | Event::Nothing => continue,
            Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _) if open.len() < DEPTH_MAX => {
                open.push(Open { is_map, items: Vec::new(), anchor, height: 1 });
                continue;
            }
            Event::SequenceStart(..) | Event::MappingStart(..) => return Err(at(mark, &too_deep)),
            Event::SequenceEnd | Event::MappingEnd => {
                let closed = open.pop().ok_or_else(|| at(mark, "not YAML: an end without a beginning"))?;
                let node = if closed.is_map { mapping(&closed.items) } else { Node::List(closed.items) };
                (Rc::new(node), closed.height, closed.anchor)
            }
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == TScalarStyle::Plain && tag.is_none_or(|tag| tag.suffix != "str");
                (Rc::new(if plain { Node::Plain(text) } else { Node::Text(text) }), 0, anchor)
            }
            Event::Alias(id) => match anchors.get(&id) {
                Some((node, height)) => (Rc::clone(node), *height, 0),
                None => return Err(at(mark, "an alias is within the node that it names")),
            },
        };
        // Counts the levels of an alias's node too: chained aliases could build a tree so deep that dropping it overflows the
        // stack.
        if open.len() + height > DEPTH_MAX {
            return Err(at(mark, &too_deep));
        }
        if anchor > 0 {
            anchors.insert(anchor, (Rc::clone(&node), height));
        }
        match open.last_mut() {
            None => root = Some(node),
            Some(parent) => {
                parent.height = parent.height.max(height + 1);
                parent.items.push(node);
            }
        }
    }
}

/// Leaves out keys that are lists or mappings: neither we nor the node have such keys.
fn mapping(keys_and_values: &[Rc<Node>]) -> Node {
    let entries = keys_and_values.chunks_exact(2).filter_map(|pair| match &*pair[0] {
        Node::Plain(key) | Node::Text(key) => Some((key.clone(), Rc::clone(&pair[1]))),
        Node::List(_) | Node::Map(_) => None,
    });
    Node::Map(entries.collect())
}
