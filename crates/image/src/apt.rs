//! Debian's packages through apt, in a root of its own: without root's rights, and without
//! touching the host's package state.
//!
//! Source: apt.conf(5), apt-get(8), apt-cache(8). Of the host's configuration only what says how
//! to reach an archive is taken over (proxies, timeouts, validity); its hooks, preferences and
//! policies are not.

use crate::error::{At, Error};
use crate::progress::{Event, Progress, Stage};
use crate::sources::Source;
use crate::version;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

/// Debian's name of the guests' architecture.
const ARCHITECTURE: &str = "amd64";
/// Key rings of Debian's archive, by the names that `debian-archive-keyring` gave them.
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
];
/// What is kept of an apt program's error output.
const ERROR_BYTES_MAX: u64 = 64 << 10;
/// What is read of an apt program's output.
const OUTPUT_BYTES_MAX: u64 = 16 << 20;

/// Host settings that say how an archive is reached.
const HOST_SETTINGS: [&str; 9] = [
    "Acquire::http",
    "Acquire::https",
    "Acquire::ftp",
    "Acquire::socks",
    "Acquire::Retries",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
    "Acquire::Max-ValidTime",
    "Acquire::ForceIPv",
];

/// Settings of our own. `Sandbox` is off since the sandbox's user can't enter a user's cache.
const SETTINGS: &str = r#"Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Cache::srcpkgcache "";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::PDiffs "false";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
"#;

/// A package that can be downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) name: String,
    pub(crate) version: String,
    /// Names of the packages it depends on, alternatives left out.
    pub(crate) depends: Vec<String>,
    /// Bytes to download.
    size: u64,
}

/// Which packages of an archive a root is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PackageKind {
    /// Those to install.
    Binary,
    /// Their sources.
    Source,
}

/// A private apt root.
#[derive(Debug)]
pub(crate) struct Apt {
    root: PathBuf,
    sources: String,
}

impl Apt {
    /// The root at `root`, made if it is not there, for the packages of `kind` in `sources`.
    pub(crate) fn new(
        root: &Path,
        sources: &BTreeSet<Source>,
        kind: PackageKind,
    ) -> Result<Self, Error> {
        if sources.is_empty() {
            return Err(Error::NoSources);
        }
        let keyring = KEYRINGS.iter().find(|path| Path::new(path).exists());
        let keyring = keyring.ok_or(Error::NoKeyring)?;
        let word = match kind {
            PackageKind::Binary => "deb",
            PackageKind::Source => "deb-src",
        };
        let sources = sources
            .iter()
            .map(|Source { uri, suite }| {
                format!("{word} [arch={ARCHITECTURE} signed-by={keyring}] {uri} {suite} main\n")
            })
            .collect();
        for directory in ["state/lists/partial", "cache/archives/partial"] {
            let path = root.join(directory);
            fs::create_dir_all(&path).at(&path)?;
        }
        let apt = Self {
            root: root.to_owned(),
            sources,
        };
        // Written by each run: the host's settings may have changed.
        apt.write("status", "")?;
        apt.write("sources.list", &apt.sources)?;
        let host = apt.run("apt-config", &["dump"], &apt.root, false, &mut |_| ())?;
        apt.write("apt.conf", &(host_settings(&host) + SETTINGS))?;
        Ok(apt)
    }

    /// Whether lists of these very sources are there, however old.
    pub(crate) fn has_lists(&self) -> bool {
        fs::read_to_string(self.root.join("listed")).is_ok_and(|listed| listed == self.sources)
    }

    /// Fetches the lists of packages.
    pub(crate) fn update(&self, progress: &mut dyn Progress) -> Result<(), Error> {
        progress.report(Event::Stage(Stage::Lists));
        let arguments = ["-qq", "-o", "APT::Status-Fd=1", "update"];
        self.run("apt-get", &arguments, &self.root, true, &mut |percent| {
            progress.report(Event::Advance {
                done: (percent * 10.0) as u64,
                total: 1000,
            });
        })?;
        self.write("listed", &self.sources)
    }

    /// The names of all packages that begin with `prefix`.
    pub(crate) fn names(&self, prefix: &str) -> Result<Vec<String>, Error> {
        let output = self.run(
            "apt-cache",
            &["pkgnames", prefix],
            &self.root,
            true,
            &mut |_| (),
        )?;
        Ok(output.lines().map(str::to_owned).collect())
    }

    /// The candidates of the packages `names`; those that there are.
    pub(crate) fn candidates(&self, names: &[String]) -> Result<Vec<Candidate>, Error> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let mut arguments = vec!["-q", "--no-all-versions", "show"];
        arguments.extend(names.iter().map(String::as_str));
        let output = match self.run("apt-cache", &arguments, &self.root, true, &mut |_| ()) {
            // Where it knows none of them; what is wrong otherwise shows in what is missing.
            Err(Error::Apt { .. }) => String::new(),
            output => output?,
        };
        Ok(output.split("\n\n").filter_map(candidate).collect())
    }

    /// The candidate of package `name`.
    pub(crate) fn candidate(&self, name: &str) -> Result<Candidate, Error> {
        let found = self.candidates(&[name.to_owned()])?;
        found
            .into_iter()
            .find(|candidate| candidate.name == name)
            .ok_or_else(|| Error::NoPackage(name.to_owned()))
    }

    /// The packages `names` and all that they depend on (recommendations left out), each from
    /// `suite`, if one is given and has it.
    pub(crate) fn closure(
        &self,
        names: &[&str],
        suite: Option<&str>,
    ) -> Result<Vec<Candidate>, Error> {
        let suite = suite.map(|suite| format!("-oAPT::Default-Release={suite}"));
        let mut arguments = vec!["-qq", "--simulate", "--no-install-recommends"];
        arguments.extend(suite.as_deref());
        arguments.push("install");
        arguments.extend(names);
        let plan = self.run("apt-get", &arguments, &self.root, true, &mut |_| ())?;
        let chosen: Vec<String> = plan.lines().filter_map(planned).collect();
        let found = self.candidates(&chosen)?;
        if found.len() != chosen.len() {
            return Err(Error::NoPackage(names.join(", ")));
        }
        Ok(found)
    }

    /// Downloads `packages` into the directory `to`, verified. Gives the files of all packages
    /// there, in no order.
    pub(crate) fn download(
        &self,
        packages: &[Candidate],
        to: &Path,
        progress: &mut dyn Progress,
    ) -> Result<Vec<PathBuf>, Error> {
        progress.report(Event::Stage(Stage::Download));
        let total = packages.iter().map(|package| package.size).sum();
        let names: Vec<String> = packages
            .iter()
            .map(|p| format!("{}={}", p.name, p.version))
            .collect();
        let mut arguments = vec!["-qq", "-o", "APT::Status-Fd=1", "download"];
        arguments.extend(names.iter().map(String::as_str));
        self.run("apt-get", &arguments, to, true, &mut |percent| {
            let done = (percent / 100.0 * total as f64) as u64;
            progress.report(Event::Advance {
                done: done.min(total),
                total,
            });
        })?;
        progress.report(Event::Advance { done: total, total });
        let entries = fs::read_dir(to).at(to)?.flatten().map(|entry| entry.path());
        Ok(entries
            .filter(|path| path.extension().is_some_and(|e| e == "deb"))
            .collect())
    }

    /// Downloads the source packages `names` into the directory `to`, verified, as they are.
    pub(crate) fn download_sources(
        &self,
        names: &[&str],
        to: &Path,
        progress: &mut dyn Progress,
    ) -> Result<(), Error> {
        progress.report(Event::Stage(Stage::Download));
        let mut arguments = vec!["-qq", "--download-only", "source"];
        arguments.extend(names);
        self.run("apt-get", &arguments, to, true, &mut |_| ())?;
        Ok(())
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Error> {
        let path = self.root.join(name);
        fs::write(&path, text).at(&path)
    }

    /// Runs `program` in `directory` and gives its output; on the way, the percentages that it
    /// reports. `private` is whether it sees this root, or the host's configuration.
    fn run(
        &self,
        program: &'static str,
        arguments: &[&str],
        directory: &Path,
        private: bool,
        percent: &mut dyn FnMut(f64),
    ) -> Result<String, Error> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(directory)
            .env("LC_ALL", "C");
        if private {
            command.env("APT_CONFIG", self.root.join("apt.conf"));
            for (key, path) in [
                ("Dir::State", "state"),
                ("Dir::State::status", "status"),
                ("Dir::Cache", "cache"),
                ("Dir::Etc::sourcelist", "sources.list"),
            ] {
                let mut option = std::ffi::OsString::from(format!("-o{key}="));
                option.push(self.root.join(path));
                command.arg(option);
            }
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let failed = |reason: String| Error::Apt { program, reason };
        let mut child = command.spawn().map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => Error::NoApt(program),
            _ => failed(source.to_string()),
        })?;
        let errors = child.stderr.take().expect("it is piped");
        let errors = thread::spawn(move || drain(errors));
        let output = child.stdout.take().expect("it is piped");
        let output = read_output(output, percent);
        let status = child.wait().map_err(|source| failed(source.to_string()))?;
        let errors = errors.join().unwrap_or_default();
        if !status.success() {
            if errors.contains("No space left on device") {
                return Err(Error::Space(directory.to_owned()));
            }
            return Err(failed(
                first_error(&errors).unwrap_or_else(|| status.to_string()),
            ));
        }
        output.map_err(|source| failed(source.to_string()))
    }
}

/// Reads a program's output, with its status lines (`dlstatus:`) told and left out.
fn read_output(output: impl Read, percent: &mut dyn FnMut(f64)) -> std::io::Result<String> {
    let mut text = String::new();
    let mut output = BufReader::new(output.take(OUTPUT_BYTES_MAX));
    let mut line = Vec::new();
    while output.read_until(b'\n', &mut line)? > 0 {
        let now = String::from_utf8_lossy(&line);
        match now.strip_prefix("dlstatus:") {
            // dlstatus:ITEM:PERCENT:TEXT
            Some(status) => {
                if let Some(Ok(value)) = status.split(':').nth(1).map(str::parse::<f64>) {
                    percent(value.clamp(0.0, 100.0));
                }
            }
            None => text.push_str(&now),
        }
        line.clear();
    }
    std::io::copy(&mut output.into_inner().into_inner(), &mut std::io::sink())?;
    Ok(text)
}

/// What a program says on its error output, of bounded length; read to its end in any case.
fn drain(mut errors: impl Read) -> String {
    let mut bytes = Vec::new();
    // What could be read is all there is to tell.
    let _ = errors
        .by_ref()
        .take(ERROR_BYTES_MAX)
        .read_to_end(&mut bytes);
    let _ = std::io::copy(&mut errors, &mut std::io::sink());
    String::from_utf8_lossy(&bytes).into_owned()
}

/// apt's first line that says `E:`, or else its first line.
fn first_error(errors: &str) -> Option<String> {
    let mut lines = errors
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty());
    let first = lines.clone().next()?;
    let line = lines.find(|line| line.starts_with("E:")).unwrap_or(first);
    let line = line
        .trim_start_matches("E:")
        .trim_start_matches("W:")
        .trim();
    Some(line.chars().filter(|c| !c.is_control()).collect())
}

/// The lines of the host's settings that say how an archive is reached.
fn host_settings(dump: &str) -> String {
    let taken = |line: &&str| HOST_SETTINGS.iter().any(|prefix| line.starts_with(prefix));
    dump.lines()
        .filter(taken)
        .flat_map(|line| [line, "\n"])
        .collect()
}

/// The package that a line of `apt-get --simulate` installs, as `NAME=VERSION`.
fn planned(line: &str) -> Option<String> {
    // Inst NAME (VERSION ARCHIVE [ARCHITECTURE]) [BROKEN]
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(" (")?;
    Some(format!("{name}={}", rest.split(' ').next()?))
}

/// One stanza of `apt-cache show`.
fn candidate(stanza: &str) -> Option<Candidate> {
    let field = |name: &str| {
        stanza
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    };
    let depends = field("Depends").unwrap_or_default().split(',');
    let depends = depends.filter(|one| !one.contains('|')).filter_map(|one| {
        // NAME[:ARCHITECTURE] [(RELATION VERSION)]
        one.split_whitespace()
            .next()?
            .split(':')
            .next()
            .map(str::to_owned)
    });
    Some(Candidate {
        name: field("Package")?.to_owned(),
        version: field("Version")?.to_owned(),
        depends: depends.collect(),
        size: field("Size")?.parse().ok()?,
    })
}

/// The later of two candidates.
pub(crate) fn later(a: &Candidate, b: &Candidate) -> Ordering {
    version::compare(&a.version, &b.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stanza_is_a_candidate() {
        let stanza = "Package: linux-image-cloud-amd64\nVersion: 6.1.192-2\nSize: 1492\n\
                      Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2), a:any, b | c\n";
        let found = candidate(stanza).unwrap();
        assert_eq!(found.depends, ["linux-image-6.1.0-56-cloud-amd64", "a"]);
        assert_eq!((found.version.as_str(), found.size), ("6.1.192-2", 1492));
        assert_eq!(candidate("Package: a\nVersion: 1\n"), None);
    }

    #[test]
    fn a_plan_names_packages_with_versions() {
        let line = "Inst libc6 (2.36-9+deb12u14 Debian:12.15/oldstable [amd64]) []";
        assert_eq!(planned(line).as_deref(), Some("libc6=2.36-9+deb12u14"));
        assert_eq!(planned("Conf libc6 (2.36 x)"), None);
        assert_eq!(planned("Inst libc6"), None);
    }

    #[test]
    fn only_settings_about_reaching_an_archive_are_taken_over() {
        let dump = "APT::Update::Post-Invoke:: \"rm -rf /\";\nAcquire::http::Proxy \"http://p/\";\n\
                    Acquire::AllowInsecureRepositories \"1\";\nAcquire::Check-Date \"false\";\n";
        assert_eq!(
            host_settings(dump),
            "Acquire::http::Proxy \"http://p/\";\nAcquire::Check-Date \"false\";\n"
        );
    }

    #[test]
    fn status_lines_are_told_and_left_out() {
        let output = "dlstatus:1:50.0:Retrieving\nname\ndlstatus:x\ndlstatus:1:1e9:odd\n";
        let mut told = Vec::new();
        let text = read_output(output.as_bytes(), &mut |percent| told.push(percent)).unwrap();
        assert_eq!(text, "name\n");
        assert_eq!(told, [50.0, 100.0]);
    }

    #[test]
    fn the_first_error_is_the_reason() {
        let errors = "W: odd\nE: Failed to fetch x\n   more\nE: other\n";
        assert_eq!(first_error(errors).unwrap(), "Failed to fetch x");
        assert_eq!(first_error("W: odd\n").unwrap(), "odd");
        assert_eq!(first_error("\n"), None);
    }
}
