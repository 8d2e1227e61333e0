//! One test body over every engine.

/// Makes a test of each function, which takes a `config::EngineKind`, for each engine: the tests
/// are called `kvm::NAME`, `translator::NAME` and `interpreter::NAME`. Those of KVM pass where the
/// function given first says that the host's KVM can't do it, and say that.
macro_rules! on_every_engine {
    ($can_kvm:ident; $($(#[$attribute:meta])* $test:ident,)+) => {
        mod kvm {
            $(
                #[test]
                $(#[$attribute])*
                fn $test() {
                    if let Err(problem) = super::$can_kvm() {
                        eprintln!("skipped: {problem}");
                        return;
                    }
                    super::$test(config::EngineKind::Kvm);
                }
            )+
        }
        mod translator {
            $(
                #[test]
                $(#[$attribute])*
                fn $test() {
                    super::$test(config::EngineKind::Translator);
                }
            )+
        }
        mod interpreter {
            $(
                #[test]
                $(#[$attribute])*
                fn $test() {
                    super::$test(config::EngineKind::Interpreter);
                }
            )+
        }
    };
}
