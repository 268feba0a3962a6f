//! Reading YAML so that every complaint can name the path, the line and the column.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Error as YamlError, Spanned};

use crate::error::{ConfigErrors, Violation};

/// Where each value of a YAML text stands.
#[derive(Clone, Debug, Default)]
pub struct Positions {
    /// Path, line and column of each value that has a key, or is an element of a list.
    places: Vec<(String, u64, u64)>,
}

/// Reads a text as a `T`.
///
/// # Errors
/// What is wrong with it, with the path and the place.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<(T, Positions), ConfigErrors> {
    let positions = Positions::of(text);
    let options = serde_saphyr::options! { with_snippet: false };
    match serde_saphyr::from_str_with_options(text, options) {
        Ok(value) => Ok((value, positions)),
        Err(e) => Err(ConfigErrors::from(vec![positions.explain(&e)])),
    }
}

impl Positions {
    /// The places of a text. Empty where it is no YAML.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let mut positions = Self::default();
        let options = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::LastWins };
        if let Ok(root) = serde_saphyr::from_str_with_options::<Spanned<Node>>(text, options) {
            positions.add(&root.value, String::new());
        }
        positions
    }

    fn add(&mut self, node: &Node, path: String) {
        match node {
            Node::Scalar => {}
            Node::List(elements) => {
                for (index, element) in elements.iter().enumerate() {
                    let path = format!("{path}[{index}]");
                    let at = element.referenced;
                    self.places.push((path.clone(), at.line(), at.column()));
                    self.add(&element.value, path);
                }
            }
            Node::Map(entries) => {
                for (key, value) in entries {
                    let path = join(&path, &key.value);
                    let at = key.referenced;
                    self.places.push((path.clone(), at.line(), at.column()));
                    self.add(&value.value, path);
                }
            }
        }
    }

    /// Line and column of a path, or of the nearest of its parents that is in the text.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<(u64, u64)> {
        let mut path = path;
        loop {
            if let Some((_, line, column)) = self.places.iter().find(|place| place.0 == path) {
                return Some((*line, *column));
            }
            path = &path[..path.rfind(['.', '['])?];
        }
    }

    /// The path whose key or value is the last to start at or before a place.
    fn path_at(&self, line: u64, column: u64) -> Option<&str> {
        let before = self.places.iter().filter(|place| (place.1, place.2) <= (line, column));
        before.max_by_key(|place| (place.1, place.2)).map(|place| place.0.as_str())
    }

    /// Sets the place of each violation that has none, and sorts them by it.
    #[must_use]
    pub fn locate(&self, errors: ConfigErrors) -> ConfigErrors {
        let mut located: Vec<_> = errors
            .into_iter()
            .map(|mut violation| {
                violation.place = violation.place.or_else(|| self.find(&violation.path));
                violation
            })
            .collect();
        located.sort_by_key(|violation: &Violation| violation.place);
        ConfigErrors::from(located)
    }

    fn explain(&self, error: &YamlError) -> Violation {
        let error = error.without_snippet();
        let place = error.location().map(|at| (at.line(), at.column())).filter(|at| at.0 > 0);
        let path = place.and_then(|(line, column)| self.path_at(line, column)).unwrap_or_default();
        match error {
            YamlError::SerdeUnknownField { field, expected, .. } => {
                Violation { path: self.path_of_key(field, path), message: unknown("field", field, expected), place }
            }
            YamlError::SerdeUnknownVariant { variant, expected, .. } => {
                Violation { path: path.to_owned(), message: unknown("value", variant, expected), place }
            }
            YamlError::SerdeMissingField { field, .. } => {
                Violation { path: path.to_owned(), message: format!("the field `{field}` is missing"), place }
            }
            YamlError::SerdeInvalidType { unexpected, expected, .. }
            | YamlError::SerdeInvalidValue { unexpected, expected, .. } => {
                Violation { path: path.to_owned(), message: format!("{expected} is needed, not {unexpected}"), place }
            }
            YamlError::DuplicateMappingKey { key: Some(key), .. } => {
                Violation { path: path.to_owned(), message: format!("the field `{key}` is there twice"), place }
            }
            YamlError::MultipleDocuments { .. } => Violation {
                path: String::new(),
                message: "a second document begins here; keep one in a file".to_owned(),
                place,
            },
            other => {
                let text = other.to_string();
                let line = text.lines().next().unwrap_or_default();
                // The place is told once, in front.
                let message = line.rfind(" at line ").map_or(line, |end| &line[..end]).to_owned();
                Violation { path: path.to_owned(), message, place }
            }
        }
    }

    /// The path of a key that is known to be at or below a path.
    fn path_of_key(&self, key: &str, near: &str) -> String {
        if near == key || near.ends_with(&format!(".{key}")) { near.to_owned() } else { join(near, key) }
    }
}

/// `parent.key`, or the key alone at the top.
#[must_use]
pub fn join(parent: &str, key: &str) -> String {
    if parent.is_empty() { key.to_owned() } else { format!("{parent}.{key}") }
}

fn unknown(what: &str, given: &str, known: &[&str]) -> String {
    match nearest(given, known) {
        Some(near) => format!("unknown {what} `{given}`; did you mean `{near}`?"),
        None if known.is_empty() => format!("unknown {what} `{given}`"),
        None => format!("unknown {what} `{given}`; known are {}", known.join(", ")),
    }
}

/// The known name that a misspelt one most likely stands for.
fn nearest<'a>(given: &str, known: &[&'a str]) -> Option<&'a str> {
    let near = known.iter().map(|name| (distance(&given.to_lowercase(), &name.to_lowercase()), *name));
    let (edits, name) = near.min_by_key(|(edits, _)| *edits)?;
    (edits <= 1 + given.chars().count() / 4).then_some(name)
}

/// How many characters must be added, removed, replaced or exchanged with their neighbour to make `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().collect());
    // What it takes from the first i characters of `a` to the first j of `b`; from or to nothing, all of them.
    let start = |i: usize, j: usize| {
        if i == 0 {
            j
        } else if j == 0 {
            i
        } else {
            0
        }
    };
    let mut rows: Vec<Vec<_>> = (0..=a.len()).map(|i| (0..=b.len()).map(|j| start(i, j)).collect()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[a.len()][b.len()]
}

/// A YAML value of which only the keys and places are kept.
enum Node {
    Scalar,
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Map(entries))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = list.next_element()? {
            elements.push(element);
        }
        Ok(Node::List(elements))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_str<E>(self, _: &str) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_some<D: Deserializer<'de>>(self, value: D) -> Result<Node, D::Error> {
        Node::deserialize(value).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_places_of_keys_and_elements() {
        let positions = Positions::of("a: 1\nb:\n  - name: x\n    c: {d: 5s}\n  - ~\n");
        assert_eq!(positions.find("a"), Some((1, 1)));
        assert_eq!(positions.find("b[0].c.d"), Some((4, 9)));
        assert_eq!(positions.find("b[1]"), Some((5, 5)));
        assert_eq!(positions.find("b[0].missing.deeper"), Some((3, 5)), "the nearest parent");
        assert_eq!(positions.find("nothing"), None);
    }

    #[test]
    fn suggests_only_what_is_near() {
        assert_eq!(nearest("maxConcurent", &["maxConcurrent", "maxQueued"]), Some("maxConcurrent"));
        assert_eq!(nearest("openai", &["openAI", "simple"]), Some("openAI"));
        assert_eq!(nearest("colour", &["maxConcurrent", "maxQueued"]), None);
        assert_eq!(distance("ab", "ba"), 1);
    }
}
