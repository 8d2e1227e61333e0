//! Which Debian archives the host knows: its apt sources, read and filtered.
//!
//! Source: sources.list(5), both its formats. Only entries of Debian's own archive for `main`
//! are taken. What tells one is its suite's name, since a mirror may have any address, and its
//! `Signed-By`, if it has one. A stranger with Debian's suite names does no harm: everything is
//! verified with the keys of Debian's archive.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Suites and code names of Debian, from bullseye on.
const SUITES: [&str; 12] = [
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
    "unstable",
    "sid",
    "experimental",
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
];

/// What may follow a suite's name.
const SUITE_SUFFIXES: [&str; 7] = [
    "",
    "-updates",
    "-security",
    "/updates",
    "-backports",
    "-backports-sloppy",
    "-proposed-updates",
];

/// One suite of one archive.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Source {
    pub(crate) uri: String,
    pub(crate) suite: String,
}

/// Files that are larger than this are no apt sources.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The Debian archives in `etc` (the host's `/etc/apt`). Files that can't be read are left out,
/// as apt does.
pub(crate) fn of_host(etc: &Path) -> BTreeSet<Source> {
    let mut files = vec![etc.join("sources.list")];
    if let Ok(entries) = fs::read_dir(etc.join("sources.list.d")) {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    let mut sources = BTreeSet::new();
    for file in files {
        if !file
            .metadata()
            .is_ok_and(|m| m.is_file() && m.len() <= FILE_BYTES_MAX)
        {
            continue;
        }
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => sources.extend(one_line_style(&text)),
            Some("sources") => sources.extend(deb822_style(&text)),
            _ => {}
        }
    }
    sources
}

/// Sources in the one-line style.
pub(crate) fn one_line_style(text: &str) -> Vec<Source> {
    text.lines().filter_map(one_line).collect()
}

fn one_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?;
    if !rest.starts_with([' ', '\t']) {
        return None;
    }
    let rest = rest.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let signed_by = options
        .split_whitespace()
        .find_map(|o| o.strip_prefix("signed-by="));
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    source(uri, suite, words, signed_by)
}

/// Sources in the deb822 style: stanzas of fields.
fn deb822_style(text: &str) -> Vec<Source> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines
        .split(|line| line.trim().is_empty())
        .flat_map(stanza)
        .collect()
}

fn stanza(lines: &[&str]) -> Vec<Source> {
    let field = |name: &str| -> Option<String> {
        let mut lines = lines.iter().skip_while(|line| {
            !line
                .split_once(':')
                .is_some_and(|(key, _)| key.trim().eq_ignore_ascii_case(name))
        });
        let mut value = lines.next()?.split_once(':')?.1.to_owned();
        for line in lines.take_while(|line| line.starts_with([' ', '\t'])) {
            value.push(' ');
            value.push_str(line);
        }
        Some(value.trim().to_owned())
    };
    let words = |name| field(name).unwrap_or_default();
    if field("Enabled").is_some_and(|value| value.eq_ignore_ascii_case("no"))
        || !words("Types").split_whitespace().any(|kind| kind == "deb")
    {
        return Vec::new();
    }
    let (uris, suites, components) = (words("URIs"), words("Suites"), words("Components"));
    let signed_by = field("Signed-By");
    let mut sources = Vec::new();
    for uri in uris.split_whitespace() {
        for suite in suites.split_whitespace() {
            let components = components.split_whitespace();
            sources.extend(source(uri, suite, components, signed_by.as_deref()));
        }
    }
    sources
}

fn source<'a>(
    uri: &str,
    suite: &str,
    mut components: impl Iterator<Item = &'a str>,
    signed_by: Option<&str>,
) -> Option<Source> {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '[' | ']' | '"' | '#');
    let usable = uri.contains(':') && !uri.starts_with("cdrom:") && uri.chars().all(plain);
    let takes = usable
        && is_debian_suite(suite)
        && components.any(|component| component == "main")
        && signed_by.is_none_or(is_debian_key);
    takes.then(|| Source {
        uri: uri.to_owned(),
        suite: suite.to_owned(),
    })
}

fn is_debian_suite(suite: &str) -> bool {
    SUITES.iter().any(|base| {
        suite
            .strip_prefix(base)
            .is_some_and(|suffix| SUITE_SUFFIXES.contains(&suffix))
    })
}

/// Whether a `Signed-By` names a key ring of Debian's archive.
fn is_debian_key(signed_by: &str) -> bool {
    signed_by.split([',', ' ']).any(|path| {
        let name = Path::new(path).file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("debian-archive-"))
    })
}

/// `sources` and, for each of `suites`, that suite of every archive that has a plain one (as
/// `bookworm` is, which `bookworm-security` is not: it is an archive of its own).
pub(crate) fn with_suites(mut sources: BTreeSet<Source>, suites: &[String]) -> BTreeSet<Source> {
    let archives: BTreeSet<String> = sources
        .iter()
        .filter(|source| SUITES.contains(&source.suite.as_str()))
        .map(|source| source.uri.clone())
        .collect();
    for suite in suites.iter().filter(|suite| is_debian_suite(suite)) {
        for uri in &archives {
            sources.insert(Source {
                uri: uri.clone(),
                suite: suite.clone(),
            });
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(uri: &str, suite: &str) -> Source {
        Source {
            uri: uri.to_owned(),
            suite: suite.to_owned(),
        }
    }

    #[test]
    fn one_line_entries() {
        let text = "\
# deb http://off.example/debian bookworm main
deb http://a.example/debian bookworm main contrib # why not
deb [ arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg ] http://b.example/x trixie-security main
deb [signed-by=/usr/share/keyrings/other.gpg] http://c.example/debian bookworm main
deb-src http://a.example/debian bookworm main
deb http://d.example/ubuntu jammy main
deb http://e.example/debian bookworm contrib
deb http://f.example/pgdg bookworm-pgdg main
deb cdrom:[Debian]/ bookworm main
deb http://g.example/flat ./
deb
";
        assert_eq!(
            one_line_style(text),
            [
                source("http://a.example/debian", "bookworm"),
                source("http://b.example/x", "trixie-security")
            ]
        );
    }

    #[test]
    fn deb822_entries() {
        let text = "\
Types: deb deb-src
# a comment within
URIs: http://a.example/debian http://b.example/debian
Suites: bookworm
 bookworm-updates
components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://c.example/debian
Suites: trixie
Components: main
Enabled: no

Types: deb
URIs: http://d.example/debian
Suites: trixie
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 odd
";
        let expected: Vec<Source> = ["a", "b"]
            .iter()
            .flat_map(|host| {
                let uri = format!("http://{host}.example/debian");
                [source(&uri, "bookworm"), source(&uri, "bookworm-updates")]
            })
            .collect();
        assert_eq!(deb822_style(text), expected);
    }

    #[test]
    fn suites_are_added_to_the_main_archive_alone() {
        let host = BTreeSet::from([
            source("h:/d", "bookworm"),
            source("h:/s", "bookworm-security"),
        ]);
        let with = with_suites(
            host.clone(),
            &["bookworm-backports".to_owned(), "x y".to_owned()],
        );
        let added: Vec<_> = with.difference(&host).collect();
        assert_eq!(added, [&source("h:/d", "bookworm-backports")]);
    }

    #[test]
    fn any_text_is_harmless() {
        for text in [
            "deb [",
            "deb [x",
            "deb ] a b main",
            ":",
            "Types:deb\n \n:\n",
            "\u{0}",
            "deb a",
        ] {
            assert_eq!(one_line_style(text), []);
            assert_eq!(deb822_style(text), []);
        }
    }
}
