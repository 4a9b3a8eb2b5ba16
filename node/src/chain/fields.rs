//! What a few fields of a JSON text hold, found without a tree of the whole text.
//!
//! A parsed text takes up to a hundred times its own size: `{"":0}` is seven bytes long, and a map with one entry some 600.
//! Here nothing is kept but the texts, numbers and truth values that somebody has asked for.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// See the module.
#[derive(Debug)]
pub struct Fields {
    /// By pointer, as they were asked for: an index into `values`; `None`: it is no pointer.
    places: Vec<Option<usize>>,
    values: Vec<Option<Value>>,
}

impl Fields {
    /// What lies at these JSON pointers (RFC 6901). `None`: the text isn't JSON. Of two entries with one name, the last counts.
    pub fn read<'p>(text: &[u8], pointers: impl Iterator<Item = &'p str>) -> Option<Self> {
        let mut root = Node::default();
        let mut count = 0;
        let places = pointers.map(|pointer| root.add(pointer, &mut count)).collect();
        let mut values = vec![None; count];
        let mut deserializer = serde_json::Deserializer::from_slice(text);
        Walk { node: Some(&root), values: &mut values }.deserialize(&mut deserializer).ok()?;
        deserializer.end().ok()?;
        Some(Self { places, values })
    }

    /// What was found at the pointer that was asked for as number `index`. Objects, arrays and `null` aren't.
    pub fn at(&self, index: usize) -> Option<&Value> {
        self.values[self.places[index]?].as_ref()
    }
}

/// A place in a text, and what is asked for below it.
#[derive(Debug, Default)]
struct Node {
    value: Option<usize>,
    below: Vec<(String, Self)>,
}

impl Node {
    fn add(&mut self, pointer: &str, count: &mut usize) -> Option<usize> {
        let Some(tokens) = pointer.strip_prefix('/') else {
            return pointer.is_empty().then(|| self.ask(count));
        };
        let mut node = self;
        for token in tokens.split('/') {
            let name = token.replace("~1", "/").replace("~0", "~");
            let known = node.below.iter().position(|(known, _)| *known == name);
            let index = known.unwrap_or_else(|| {
                node.below.push((name, Self::default()));
                node.below.len() - 1
            });
            node = &mut node.below[index].1;
        }
        Some(node.ask(count))
    }

    fn ask(&mut self, count: &mut usize) -> usize {
        *self.value.get_or_insert_with(|| {
            *count += 1;
            *count - 1
        })
    }

    fn entry(&self, name: &str) -> Option<&Self> {
        self.below.iter().find(|(known, _)| known == name).map(|(_, node)| node)
    }

    /// Of an array. (`+1` and `01` are names, but no indices.)
    fn element(&self, index: usize) -> Option<&Self> {
        self.below
            .iter()
            .find(|(name, _)| {
                let is_plain = !name.starts_with('+') && (name.len() == 1 || !name.starts_with('0'));
                is_plain && name.parse() == Ok(index)
            })
            .map(|(_, node)| node)
    }

    /// What was found here or below has been written over.
    fn forget(&self, values: &mut [Option<Value>]) {
        if let Some(value) = self.value {
            values[value] = None;
        }
        self.below.iter().for_each(|(_, node)| node.forget(values));
    }
}

/// Goes over the value that comes next; `node`: what is asked for there.
struct Walk<'a> {
    node: Option<&'a Node>,
    values: &'a mut [Option<Value>],
}

impl Walk<'_> {
    fn found(self, value: impl FnOnce() -> Value) {
        if let Some(place) = self.node.and_then(|node| node.value) {
            self.values[place] = Some(value());
        }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();
    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("any value")
    }
    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.found(|| value.into());
        Ok(())
    }
    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.found(|| value.into());
        Ok(())
    }
    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.found(|| value.into());
        Ok(())
    }
    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.found(|| value.into());
        Ok(())
    }
    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        self.found(|| value.into());
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let Self { node, values } = self;
        for index in 0.. {
            let node = node.filter(|node| !node.below.is_empty()).and_then(|node| node.element(index));
            if elements.next_element_seed(Walk { node, values })?.is_none() {
                break;
            }
        }
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let Self { node, values } = self;
        while let Some(node) = entries.next_key_seed(Name(node))? {
            if let Some(node) = node {
                node.forget(values);
            }
            entries.next_value_seed(Walk { node, values })?;
        }
        Ok(())
    }
}

/// The name of an entry: what is asked for in it.
struct Name<'a>(Option<&'a Node>);

impl<'de, 'a> DeserializeSeed<'de> for Name<'a> {
    type Value = Option<&'a Node>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de, 'a> Visitor<'de> for Name<'a> {
    type Value = Option<&'a Node>;
    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a name")
    }
    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.and_then(|node| node.entry(name)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// The same by the tree of the whole.
    fn by_tree(text: &[u8], pointer: &str) -> Option<Value> {
        let found = serde_json::from_slice::<Value>(text).ok()?.pointer(pointer)?.clone();
        (!found.is_null() && !found.is_array() && !found.is_object()).then_some(found)
    }

    #[test]
    fn a_field_is_found_wherever_it_lies() {
        let text = br#"{"a": 1, "kind": "image", "a/b": [true, {"~": -2.5}], "none": null, "": {"": "e"}, "kind": "last",
            "twice": {"deep": 1, "er": 2}, "twice": {"er": 3}, "big": 18446744073709551615, "long": "\u00e9\n"}"#;
        for (pointer, found) in [
            ("/a", Some(json!(1))),
            ("/kind", Some(json!("last"))),
            ("/kind/deeper", None),
            ("/a~1b/0", Some(json!(true))),
            ("/a~1b/1/~0", Some(json!(-2.5))),
            ("/a~1b/01", None),
            ("/a~1b/+1", None),
            ("/a~1b/-", None),
            ("/a~1b", None),
            ("/none", None),
            ("//", Some(json!("e"))),
            ("/twice/deep", None),
            ("/twice/er", Some(json!(3))),
            ("/big", Some(json!(u64::MAX))),
            ("/long", Some(json!("\u{e9}\n"))),
            ("no-pointer", None),
            ("", None),
        ] {
            let fields = Fields::read(text, ["/a", pointer, pointer].into_iter()).expect("JSON");
            assert_eq!(fields.at(1), found.as_ref(), "{pointer}");
            assert_eq!((fields.at(0), fields.at(2)), (Some(&json!(1)), found.as_ref()), "{pointer}");
            assert_eq!(by_tree(text, pointer), found, "{pointer}");
        }
        let at_all = |text: &[u8]| Fields::read(text, [""].into_iter()).map(|fields| fields.at(0).cloned());
        assert_eq!(at_all(b" \"x\" "), Some(Some(json!("x"))), "the value itself");
        for text in [&b"{\"kind\": 1"[..], b"", b"1 2", b"{\"\xff\": 1}", b"[1,]", b"1e999"] {
            assert_eq!(at_all(text), None, "{}", String::from_utf8_lossy(text));
        }
        assert_eq!(at_all(&[b'['; 1_000_000]), None, "not by the stack's end");
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[a-c~/\\PC]{0,3}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 30, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec(("[a-c01~/]{0,2}", inner), 0..4)
                    .prop_map(|entries| Value::Object(entries.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_found_is_what_the_tree_has(value in values(), pointers in prop::collection::vec("(/[a-c01~/]{0,2}){0,3}", 0..6)) {
            let text = value.to_string();
            let fields = Fields::read(text.as_bytes(), pointers.iter().map(String::as_str)).expect("JSON");
            for (index, pointer) in pointers.iter().enumerate() {
                prop_assert_eq!(fields.at(index).cloned(), by_tree(text.as_bytes(), pointer), "{} in {}", pointer, text);
            }
        }
    }
}
