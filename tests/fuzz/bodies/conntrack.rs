//! What ctnetlink tells of an entry. What can be read names exactly one entry in the order to delete it.
use enforcer::conntrack::Entry;

pub fn body(input: &[u8]) {
    let Ok(entry) = Entry::parse(input) else { return };
    assert!(entry.ends_at(entry.opened) && entry.ends_at(entry.answers));
    let order = entry.delete(7);
    assert_eq!(order.get(..4), Some((order.len() as u32).to_ne_bytes().as_slice()));
    // an order without a tuple would empty the table: the first attribute is the tuple, as it was told
    let attributes = order.get(20..).unwrap_or_default();
    assert!(attributes.len() > 12, "a tuple and an id");
    assert_eq!(attributes.get(2..4), Some(0x8001u16.to_ne_bytes().as_slice()));
}
