//! Where the lines come from: a prompt on a terminal, or a pipe. Either is read on a thread of its own, one line when it is
//! asked for, because such reads cannot be interrupted.

use std::{
    io::{BufRead, Write},
    sync::{Arc, mpsc},
    thread,
};

use parking_lot::Mutex;
use rustyline::{DefaultEditor, ExternalPrinter, error::ReadlineError};
use tokio::sync::mpsc as async_mpsc;

const PROMPT: &str = "> ";

type Printer = Box<dyn ExternalPrinter + Send>;

/// A source of lines.
pub struct Input {
    ask: mpsc::SyncSender<()>,
    lines: async_mpsc::Receiver<String>,
    asked: bool,
    /// Prints above the prompt while there is one.
    printer: Arc<Mutex<Option<Printer>>>,
}

impl Input {
    /// Lines typed at a prompt, with history and editing.
    ///
    /// # Errors
    /// The terminal cannot be used, or no thread can be started.
    pub fn prompt() -> anyhow::Result<Self> {
        let mut editor = DefaultEditor::new()?;
        let printer: Option<Printer> = match editor.create_external_printer() {
            Ok(printer) => Some(Box::new(printer)),
            Err(_) => None,
        };
        Self::start(printer, move || match editor.readline(PROMPT) {
            Ok(line) => {
                // A line that is not remembered can still be sent.
                let _ = editor.add_history_entry(&line);
                Some(line)
            }
            Err(ReadlineError::Interrupted | ReadlineError::Eof) | Err(_) => None,
        })
    }

    /// Lines from standard input.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn pipe() -> anyhow::Result<Self> {
        Self::start(None, || {
            let mut bytes = Vec::new();
            let read = std::io::stdin().lock().read_until(b'\n', &mut bytes).unwrap_or(0);
            (read > 0).then(|| String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned())
        })
    }

    fn start(
        printer: Option<Printer>,
        mut read: impl FnMut() -> Option<String> + Send + 'static,
    ) -> anyhow::Result<Self> {
        let (ask, asked) = mpsc::sync_channel(1);
        let (found, lines) = async_mpsc::channel(1);
        thread::Builder::new().name("input".to_owned()).spawn(move || {
            while asked.recv().is_ok() {
                let Some(line) = read() else { break };
                if found.blocking_send(line).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { ask, lines, asked: false, printer: Arc::new(Mutex::new(printer)) })
    }

    /// Asks for a line, unless one is asked for already.
    pub fn ask(&mut self) {
        if !std::mem::replace(&mut self.asked, true) {
            // Where the thread has ended, `next` tells.
            let _ = self.ask.try_send(());
        }
    }

    /// The line that was asked for; none at the end of the input. Pends while none is asked for. Cancel-safe.
    pub async fn next(&mut self) -> Option<String> {
        if !self.asked {
            std::future::pending::<()>().await;
        }
        let line = self.lines.recv().await;
        self.asked = false;
        line
    }

    /// Tells the user something without disturbing what is being typed.
    pub fn say(&self, words: &str) {
        if self.asked
            && let Some(printer) = self.printer.lock().as_mut()
            && printer.print(format!("{words}\n")).is_ok()
        {
            return;
        }
        // Standard error may be closed; then nobody wants to hear it.
        let _ = writeln!(std::io::stderr(), "{words}");
    }
}
