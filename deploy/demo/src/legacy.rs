//! Takes plain HTTP from anyone on loopback; gives invoices (and a small wiki) as an internal program of 2009 would: it knows nothing
//! of tokens and believes the `X-Postern-*` fields that say who is calling.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::serve;

/// More than the demo needs, less than a script could fill memory with.
const INVOICES: usize = 1000;

/// `args`: the address of the invoice API and the address of the wiki.
pub(crate) fn run(args: impl Iterator<Item = OsString>) -> anyhow::Result<()> {
    let [invoices, wiki] = crate::roles::exactly(args)?;
    let ledger = Mutex::new(first_invoices());
    let invoice_api = move |request: &Request<Bytes>| {
        let response = invoices_api(&mut ledger.lock().unwrap_or_else(PoisonError::into_inner), request);
        tracing::info!("{} {} {}", request.method(), request.uri().path(), response.status().as_u16());
        response
    };
    serve::run(vec![(invoices.parse()?, Arc::new(invoice_api)), (wiki.parse()?, Arc::new(wiki_page))])
}

type Ledger = BTreeMap<u64, Value>;

fn first_invoices() -> Ledger {
    [(5, "Paper clips", "12.40"), (6, "Toner", "189.00"), (7, "Coffee", "86.15")]
        .map(|(id, what, total)| (id, json!({ "id": id, "for": what, "total": total, "currency": "EUR" })))
        .into()
}

fn invoices_api(ledger: &mut Ledger, request: &Request<Bytes>) -> Response<Bytes> {
    let path = request.uri().path();
    let id = path.strip_prefix("/v1/invoices/").and_then(|id| id.parse::<u64>().ok());
    let (status, body) = match (request.method(), id) {
        (&Method::GET, None) if path == "/v1/invoices" => {
            (StatusCode::OK, json!({ "invoices": ledger.values().collect::<Vec<_>>() }))
        }
        (&Method::GET, Some(id)) => match ledger.get(&id) {
            Some(invoice) => (StatusCode::OK, json!({ "invoice": invoice })),
            None => not_found(),
        },
        (&Method::POST, None) if path == "/v1/invoices" => create(ledger, request.body()),
        (&Method::DELETE, Some(id)) => match ledger.remove(&id) {
            Some(_) => (StatusCode::OK, json!({ "deleted": id })),
            None => not_found(),
        },
        _ => not_found(),
    };
    reply(status, body, request)
}

fn create(ledger: &mut Ledger, body: &Bytes) -> (StatusCode, Value) {
    let Ok(Value::Object(mut invoice)) = serde_json::from_slice(body) else {
        return (StatusCode::BAD_REQUEST, json!({ "fault": "an invoice is a JSON object" }));
    };
    if ledger.len() >= INVOICES {
        return (StatusCode::INSUFFICIENT_STORAGE, json!({ "fault": "the ledger is full" }));
    }
    let id = ledger.last_key_value().map_or(1, |(last, _)| last + 1);
    invoice.insert("id".into(), id.into());
    let invoice = Value::Object(invoice);
    ledger.insert(id, invoice.clone());
    (StatusCode::CREATED, json!({ "invoice": invoice }))
}

fn not_found() -> (StatusCode, Value) {
    (StatusCode::NOT_FOUND, json!({ "fault": "no such invoice" }))
}

/// The answer, with what the relay said about the caller: null for who came past it.
fn reply(status: StatusCode, mut body: Value, request: &Request<Bytes>) -> Response<Bytes> {
    let said = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    body["caller"] = json!({ "subject": said("x-postern-subject"), "roles": said("x-postern-roles") });
    let mut response = serve::text(status, "application/json", format!("{body:#}\n"));
    // It tells the world what it runs on, as one did; the relay does not pass that on.
    response.headers_mut().insert("x-powered-by", http::HeaderValue::from_static("InvoiceMaster/2.1 (2009)"));
    response
}

fn wiki_page(request: &Request<Bytes>) -> Response<Bytes> {
    if request.uri().path() != "/" || request.method() != Method::GET {
        return serve::text(StatusCode::NOT_FOUND, "text/plain", "no such page\n");
    }
    let page =
        "<!doctype html><title>Wiki</title><h1>Wiki</h1><p>The coffee machine is on the second floor.</p>\n";
    serve::text(StatusCode::OK, "text/html; charset=utf-8", page)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(ledger: &mut Ledger, method: Method, path: &str, body: &'static str) -> (u16, Value) {
        let request = Request::builder().method(method).uri(path).header("x-postern-subject", "ada");
        let response = invoices_api(ledger, &request.body(Bytes::from(body)).unwrap());
        (response.status().as_u16(), serde_json::from_slice(response.body()).unwrap())
    }

    #[test]
    fn invoices_are_listed_read_made_and_deleted() {
        let mut ledger = first_invoices();
        let (status, list) = call(&mut ledger, Method::GET, "/v1/invoices", "");
        assert_eq!((status, list["invoices"].as_array().unwrap().len()), (200, 3));
        assert_eq!(list["caller"]["subject"], "ada");
        assert_eq!(call(&mut ledger, Method::GET, "/v1/invoices/7", "").1["invoice"]["for"], "Coffee");
        let (status, made) = call(&mut ledger, Method::POST, "/v1/invoices", r#"{"for":"Tea","id":1}"#);
        assert_eq!((status, &made["invoice"]["id"]), (201, &json!(8)));
        assert_eq!(call(&mut ledger, Method::DELETE, "/v1/invoices/8", "").0, 200);
        assert_eq!(call(&mut ledger, Method::DELETE, "/v1/invoices/8", "").0, 404);
        assert_eq!(call(&mut ledger, Method::POST, "/v1/invoices", "[]").0, 400);
        assert_eq!(call(&mut ledger, Method::GET, "/v2/invoices", "").0, 404);
        assert_eq!(call(&mut ledger, Method::GET, "/v1/invoices/x", "").0, 404);
    }
}
