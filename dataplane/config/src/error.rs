//! What is wrong with a configuration: every violation, with its path and place.

use std::fmt;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Where, as a path such as `upstreams[0].pool.queueTimeout`. Empty: the text as a whole.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
    /// Line and column in the text, from 1, where there is a text.
    pub place: Option<(u64, u64)>,
}

impl Violation {
    /// A violation of unknown place.
    #[must_use]
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into(), place: None }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((line, column)) = self.place {
            write!(f, "line {line}, column {column}: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// All that is wrong with a configuration: at least one violation. One a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(Vec<Violation>);

impl ConfigErrors {
    /// The violations, in the order of the text.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.0
    }
}

impl From<Vec<Violation>> for ConfigErrors {
    fn from(violations: Vec<Violation>) -> Self {
        Self(violations)
    }
}

impl IntoIterator for ConfigErrors {
    type Item = Violation;
    type IntoIter = std::vec::IntoIter<Violation>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, violation) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{violation}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
