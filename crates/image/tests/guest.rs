//! Makes the guests for real. Needs Debian's archive, so it is run by hand:
//! `cargo nextest run -p image --run-ignored all`.
#![forbid(unsafe_code)]

use image::{Freshness, GuestSpec, KernelChoice, Options};

#[test]
#[ignore = "fetches packages from Debian's archive"]
fn guests_are_made_once_and_found_again() {
    let cache = tempfile::tempdir().unwrap();
    let mut options = Options {
        cache: Some(cache.path().to_owned()),
        ..Options::default()
    };
    for kernel in [
        KernelChoice::Default,
        KernelChoice::Series("6.12".to_owned()),
    ] {
        let spec = GuestSpec { kernel };
        options.freshness = Freshness::Daily;
        let made = image::debian(&spec, &options, &mut image::Silent).unwrap();
        let mut events = 0;
        let found = image::debian(&spec, &options, &mut |_: image::Event<'_>| events += 1).unwrap();
        assert_eq!(
            (&found.kernel, events),
            (&made.kernel, 0),
            "found without a look around"
        );
        assert_eq!(made.initrd.metadata().unwrap().len() % 4, 0);
        options.freshness = Freshness::Now;
        let again = image::debian(&spec, &options, &mut image::Silent).unwrap();
        assert_eq!(
            again.kernel, made.kernel,
            "the same packages are the same guest"
        );
    }
}

#[test]
#[ignore = "fetches packages from Debian's archive"]
fn any_package_can_be_unpacked() {
    let directory = tempfile::tempdir().unwrap();
    let cache = directory.path().join("cache");
    let options = Options {
        cache: Some(cache),
        ..Options::default()
    };
    let to = directory.path().join("to");
    let got = image::packages(&["memtest86+"], &to, &options, &mut image::Silent).unwrap();
    assert_eq!(got[0].0, "memtest86+");
    assert!(to.join("boot").is_dir());
    let whole = directory.path().join("whole");
    let got =
        image::packages_with_dependencies(&["busybox"], None, &whole, &options, &mut image::Silent)
            .unwrap();
    assert!(got.iter().any(|(name, _)| name == "libc6"), "{got:?}");
    assert!(whole.join("bin/busybox").exists() || whole.join("usr/bin/busybox").exists());
    let missing = image::packages(&["no-such-package"], &to, &options, &mut image::Silent);
    assert!(
        matches!(missing, Err(image::Error::NoPackage(_))),
        "{missing:?}"
    );
}
