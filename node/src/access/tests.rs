use http::HeaderValue;

use super::*;

const HERE: Caller = Caller::Remote(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));

fn access(new: NewToken) -> (Access, TokenText) {
    let folder = tempfile::tempdir().expect("a folder");
    let bootstrap = ApiToken::load_or_create(&folder.path().join("api-token")).expect("a token");
    let (text, stored) = new.draw(1).expect("random bits");
    (Access::new(bootstrap, &[stored], None), text)
}

fn headers(token: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}")).expect("a header"));
    headers
}

fn new(scopes: &[Scope], functions: Option<&[&str]>) -> NewToken {
    NewToken {
        scopes: scopes.iter().copied().collect(),
        functions: functions.map(|names| names.iter().map(|name| (*name).to_owned()).collect()),
        note: String::new(),
        expires_unix_ms: None,
    }
}

const INVOKE: Need<'_> = Need { scope: Scope::Invoke, name: Some("a") };

#[test]
fn a_token_may_do_what_its_scopes_say() {
    for (given, may) in [
        (Scope::Invoke, [true, false, false]),
        (Scope::Deploy, [false, true, false]),
        (Scope::Admin, [true, true, true]),
    ] {
        let (access, text) = access(new(&[given], None));
        let headers = headers(text.reveal());
        for (scope, may) in [Scope::Invoke, Scope::Deploy, Scope::Admin].into_iter().zip(may) {
            for name in [Some("a"), None] {
                let got = access.check(HERE, &headers, Need { scope, name });
                assert_eq!(
                    got,
                    if may { Ok(()) } else { Err(Denied::Forbidden(scope)) },
                    "{given:?} {scope:?}"
                );
            }
        }
    }
}

#[test]
fn a_token_for_some_functions_is_for_no_others_and_not_for_the_node() {
    let (access, text) = access(new(&[Scope::Invoke, Scope::Admin], Some(&["a", "b"])));
    let headers = headers(text.reveal());
    let check = |name| access.check(HERE, &headers, Need { scope: Scope::Invoke, name });
    assert_eq!((check(Some("a")), check(Some("b"))), (Ok(()), Ok(())));
    assert_eq!(check(Some("c")), Err(Denied::Forbidden(Scope::Invoke)));
    assert_eq!(check(None), Err(Denied::Forbidden(Scope::Invoke)));
}

#[test]
fn what_is_not_a_known_token_is_nobodys() {
    let (access, text) = access(new(&[Scope::Invoke], None));
    let text = text.reveal();
    let changed = format!("{}0", &text[..text.len() - 1]);
    let changed = if changed == text { format!("{}1", &text[..text.len() - 1]) } else { changed };
    for bad in ["", "x", &text[..text.len() - 1], &format!("{text}0"), &changed, &text.replace("spry_", "")] {
        assert_eq!(access.check(HERE, &headers(bad), INVOKE), Err(Denied::Unknown), "{bad}");
    }
    assert_eq!(access.check(HERE, &HeaderMap::new(), INVOKE), Err(Denied::Unknown));
    assert_eq!(access.check(HERE, &headers(text), INVOKE), Ok(()));
    assert_eq!(access.check(Caller::Local, &HeaderMap::new(), INVOKE), Ok(()));
    let stranger = access.check(Caller::Stranger { uid: 7 }, &headers(text), INVOKE);
    assert_eq!(stranger, Err(Denied::Stranger(7)));
    access.set_tokens(&[]);
    assert_eq!(access.check(HERE, &headers(text), INVOKE), Err(Denied::Unknown), "revoked");
}

#[test]
fn an_expired_token_is_nobodys() {
    let soon = NewToken { expires_unix_ms: Some(unix_ms() + 3_600_000), ..new(&[Scope::Invoke], None) };
    let (access_soon, text) = access(soon);
    assert_eq!(access_soon.check(HERE, &headers(text.reveal()), INVOKE), Ok(()));
    let past = NewToken { expires_unix_ms: Some(unix_ms()), ..new(&[Scope::Invoke], None) };
    let (access_past, text) = access(past);
    assert_eq!(access_past.check(HERE, &headers(text.reveal()), INVOKE), Err(Denied::Unknown));
}

#[test]
fn a_function_sees_no_token_of_ours() {
    let (access, text) = access(new(&[Scope::Admin], None));
    let seen = |token: &str| {
        let mut headers = headers(token);
        access.conceal(&mut headers);
        headers.contains_key(AUTHORIZATION)
    };
    assert!(!seen(text.reveal()));
    assert!(!seen("spry_of_another_node"));
    assert!(seen("a-token-that-the-function-itself-asks-for"));
}

#[test]
fn each_token_has_a_rate_of_its_own() {
    let (access, text) = access(new(&[Scope::Invoke], None));
    access.set_rate(Some(Rate { per_second: 1.0, burst: 1.0, table: 64 }));
    let (known, nobody) = (headers(text.reveal()), HeaderMap::new());
    assert_eq!(access.admit(HERE, &known), Ok(()));
    assert!(matches!(access.admit(HERE, &known), Err(Denied::TooMany { after_s: 1 })));
    assert_eq!(access.admit(HERE, &nobody), Ok(()));
    // A token that isn't known counts for the address: guessing is limited as well.
    assert!(access.admit(HERE, &headers("spry_guess")).is_err());
    assert_eq!(access.admit(Caller::Local, &nobody), Ok(()));
    access.set_rate(None);
    assert_eq!(access.admit(HERE, &known), Ok(()));
}
