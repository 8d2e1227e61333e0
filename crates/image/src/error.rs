//! Why a guest can't be made.

use std::io;
use std::path::{Path, PathBuf};

/// Why a guest can't be made. Each message is one line that names the thing and, where there is
/// one, the mend.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One of apt's programs is missing.
    #[error(
        "{0} is not on this host: Debian guests are fetched with it; run on Debian (or in a \
         Debian container), or give a kernel and an initrd of your own"
    )]
    NoApt(&'static str),
    /// No entry of the host's apt sources is a Debian archive.
    #[error(
        "no Debian archive in the host's apt sources (/etc/apt/sources.list, sources.list.d): \
         add one, or name one with an option"
    )]
    NoSources,
    /// The keys of Debian's archive are missing.
    #[error("the keys of Debian's archive are not on this host: install debian-archive-keyring")]
    NoKeyring,
    /// An apt program failed.
    #[error("{program} failed: {reason}")]
    Apt {
        /// Which one.
        program: &'static str,
        /// Its own first error line.
        reason: String,
    },
    /// The sources hold no kernel of the series asked for.
    #[error(
        "the Debian sources have no cloud kernel {wanted}; {}",
        offer(available)
    )]
    NoKernel {
        /// The series.
        wanted: String,
        /// The series that there are.
        available: Vec<String>,
    },
    /// The sources don't hold a package.
    #[error("the Debian sources have no package {0}")]
    NoPackage(String),
    /// A package that can't be read.
    #[error("{}: not a usable package: {reason}", file.display())]
    Package {
        /// Its file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A word that can't be handed to a guest.
    #[error("{0}")]
    Argument(String),
    /// No place for the cache.
    #[error("no cache directory: set HOME or XDG_CACHE_HOME to an absolute path")]
    NoCache,
    /// The disk is full.
    #[error("no space left for {}: free some, or set XDG_CACHE_HOME to another disk", .0.display())]
    Space(PathBuf),
    /// A file operation failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn offer(available: &[String]) -> String {
    if available.is_empty() {
        "nor any other: add a Debian suite that has one".to_owned()
    } else {
        format!(
            "they have {}: choose one of these, or add a suite",
            available.join(", ")
        )
    }
}

impl Error {
    /// `source`, on `path`.
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Space(path.to_owned())
            }
            _ => Self::Io {
                path: path.to_owned(),
                source,
            },
        }
    }
}

/// Names the path in an error of a file operation.
pub(crate) trait At<T> {
    /// The value, or the error on `path`.
    fn at(self, path: &Path) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, path: &Path) -> Result<T, Error> {
        self.map_err(|source| Error::io(path, source.into()))
    }
}
