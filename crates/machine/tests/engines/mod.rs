//! One test body over every engine.

/// Makes a test of each function, which takes a `config::EngineKind`, for each engine: the tests
/// are called `translator::NAME` and `interpreter::NAME`.
macro_rules! on_every_engine {
    ($($(#[$attribute:meta])* $test:ident,)+) => {
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
