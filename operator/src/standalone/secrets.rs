//! Secrets of a manifest on this machine: given as files or environment variables, put where the data plane reads them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context;
use chatgateway_api::SecretKey;
use chatgateway_config::{ConfigErrors, Violation};

use crate::standalone::files::{private_dir, replace};
use crate::validate::{SecretUse, Validated};

/// What environment variables with secrets begin with. The data plane does not get to see them.
pub const VARIABLE_PREFIX: &str = "CHATGATEWAY_SECRET_";

/// `--secret NAME/KEY=FILE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretArg {
    name: String,
    key: String,
    file: PathBuf,
}

impl FromStr for SecretArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=').and_then(|(secret, file)| Some((secret.split_once('/')?, file)));
        match parts {
            Some(((name, key), file)) if !name.is_empty() && !key.is_empty() && !file.is_empty() => {
                Ok(Self { name: name.to_owned(), key: key.to_owned(), file: PathBuf::from(file) })
            }
            _ => Err("write NAME/KEY=FILE, such as vllm/api-key=./key.txt".to_owned()),
        }
    }
}

/// Where values come from, and what was written last.
#[derive(Debug)]
pub struct Secrets {
    given: Vec<SecretArg>,
    folder: PathBuf,
    written: BTreeMap<SecretKey, Vec<u8>>,
}

impl Secrets {
    /// Secrets below a folder.
    #[must_use]
    pub fn new(given: Vec<SecretArg>, folder: PathBuf) -> Self {
        Self { given, folder, written: BTreeMap::new() }
    }

    /// Where they are put: `NAME/KEY` below it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes sure that there is a value for each secret a gateway names.
    ///
    /// # Errors
    /// Those that have none, each with the path of the field and what to do.
    pub fn check(&self, gateway: &Validated) -> Result<(), ConfigErrors> {
        let missing: Vec<_> = gateway
            .secrets()
            .into_iter()
            .filter_map(|SecretUse { path, secret, .. }| {
                let reason = match self.value(&secret) {
                    Ok(Some(_)) => return None,
                    Ok(None) => "there is no value for".to_owned(),
                    Err(error) => format!("{error:#}; that is the value of"),
                };
                let SecretKey { name, key } = &secret;
                let message = format!(
                    "{reason} Secret `{name}`, key `{key}`; give --secret {name}/{key}=FILE or set {}",
                    variable(&secret)
                );
                Some(Violation::new(path, message))
            })
            .collect();
        if missing.is_empty() { Ok(()) } else { Err(ConfigErrors::from(missing)) }
    }

    /// Writes the values that are new or differ from what was written last; which those are.
    ///
    /// # Errors
    /// Where a value is not to be had, or a file cannot be written.
    pub fn write(&mut self, gateway: &Validated) -> anyhow::Result<Vec<SecretKey>> {
        let mut changed = Vec::new();
        for SecretUse { secret, .. } in gateway.secrets() {
            let Some(value) = self.value(&secret)? else { continue };
            if self.written.get(&secret) == Some(&value) {
                continue;
            }
            let folder = self.folder.join(&secret.name);
            private_dir(&self.folder)?;
            private_dir(&folder)?;
            replace(&folder.join(&secret.key), &value)?;
            self.written.insert(secret.clone(), value);
            changed.push(secret);
        }
        Ok(changed)
    }

    fn value(&self, secret: &SecretKey) -> anyhow::Result<Option<Vec<u8>>> {
        let given = self.given.iter().find(|arg| arg.name == secret.name && arg.key == secret.key);
        if let Some(SecretArg { file, .. }) = given {
            let value = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            return Ok(Some(value));
        }
        Ok(std::env::var_os(variable(secret)).map(|value| value.into_encoded_bytes()))
    }
}

/// The environment variable of a secret: `CHATGATEWAY_SECRET_VLLM_API_KEY` for key `api-key` of Secret `vllm`.
fn variable(secret: &SecretKey) -> String {
    let plain = |text: &str| -> String {
        text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
    };
    format!("{VARIABLE_PREFIX}{}_{}", plain(&secret.name), plain(&secret.key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_have_variables_of_their_own() {
        let secret = SecretKey { name: "vllm.prod".into(), key: "api-key".into() };
        assert_eq!(variable(&secret), "CHATGATEWAY_SECRET_VLLM_PROD_API_KEY");
    }

    #[test]
    fn arguments_name_secret_key_and_file() {
        let arg: SecretArg = "vllm/api-key=/a=b".parse().expect("good");
        assert_eq!((arg.name.as_str(), arg.key.as_str(), arg.file), ("vllm", "api-key", PathBuf::from("/a=b")));
        for wrong in ["vllm=/a", "vllm/=/a", "/k=/a", "vllm/k=", "vllm/k"] {
            assert!(wrong.parse::<SecretArg>().is_err(), "{wrong}");
        }
    }
}
