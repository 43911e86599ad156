//! JSON-RPC 2.0, one object a line (<https://www.jsonrpc.org/specification>). Ids are numbers chosen by the
//! caller; batches are not used.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The longest message in either direction, in bytes without the newline. Checked at the sender.
pub const MESSAGE_MAX: usize = 1 << 20;

/// Unknown method.
pub const METHOD_NOT_FOUND: i32 = -32601;
/// Parameters of the wrong shape.
pub const INVALID_PARAMS: i32 = -32602;
/// The method was understood and failed.
pub const FAILED: i32 = -32000;

/// The error object of a response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct RpcError {
    /// One of the codes of this module.
    pub code: i32,
    /// What went wrong, for people.
    pub message: String,
    /// Machine-readable detail of the failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

impl RpcError {
    /// A failure of a method that was understood.
    pub fn failed(message: impl ToString) -> Self {
        Self { code: FAILED, message: message.to_string(), data: None }
    }
}

/// One message. Absent members decide what it is: see [`Message::classify`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    jsonrpc: Version,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    params: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<RpcError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Version {
    #[serde(rename = "2.0")]
    V2,
}

/// What a message is.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// A call that wants an answer.
    Request {
        /// Repeated in the answer.
        id: u64,
        /// Method name.
        method: String,
        /// Parameters; `null` when absent.
        params: Value,
    },
    /// A call that wants no answer.
    Notification {
        /// Method name.
        method: String,
        /// Parameters; `null` when absent.
        params: Value,
    },
    /// The answer to a request.
    Response {
        /// Id of the request.
        id: u64,
        /// Its outcome; a successful `null` when the member was absent.
        outcome: Result<Value, RpcError>,
    },
}

/// A message that cannot be read or must not be sent.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Not a JSON-RPC 2.0 message.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// Above [`MESSAGE_MAX`].
    #[error("message of {0} bytes is larger than {MESSAGE_MAX}")]
    TooLarge(usize),
}

impl Message {
    const EMPTY: Message =
        Message { jsonrpc: Version::V2, id: None, method: None, params: None, result: None, error: None };

    /// A request.
    pub fn request(id: u64, method: &str, params: &impl Serialize) -> Self {
        Self { id: Some(id), ..Self::notification(method, params) }
    }

    /// A notification.
    pub fn notification(method: &str, params: &impl Serialize) -> Self {
        let params = Some(serde_json::to_value(params).expect("wire types serialise"));
        Self { method: Some(method.to_owned()), params, ..Self::EMPTY }
    }

    /// The answer to request `id`.
    pub fn response(id: u64, outcome: Result<Value, RpcError>) -> Self {
        let (result, error) = match outcome {
            Ok(value) => (Some(value), None),
            Err(error) => (None, Some(error)),
        };
        Self { id: Some(id), result, error, ..Self::EMPTY }
    }

    /// Id of a request or response.
    pub fn id(&self) -> Option<u64> {
        self.id
    }

    /// The message as a line, newline included.
    ///
    /// # Errors
    /// [`MessageError::TooLarge`]: nothing was sent and the stream stays usable.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        let mut line = serde_json::to_vec(self).expect("wire types serialise");
        if line.len() > MESSAGE_MAX {
            return Err(MessageError::TooLarge(line.len()));
        }
        line.push(b'\n');
        Ok(line)
    }

    /// Reads a line (without its newline).
    ///
    /// # Errors
    /// [`MessageError::Malformed`] when it is no JSON-RPC 2.0 message.
    pub fn decode(line: &[u8]) -> Result<Kind, MessageError> {
        let message: Message =
            serde_json::from_slice(line).map_err(|e| MessageError::Malformed(e.to_string()))?;
        message.classify()
    }

    fn classify(self) -> Result<Kind, MessageError> {
        let params = self.params.unwrap_or(Value::Null);
        match (self.id, self.method) {
            (Some(id), Some(method)) => Ok(Kind::Request { id, method, params }),
            (None, Some(method)) => Ok(Kind::Notification { method, params }),
            (Some(id), None) => {
                let outcome = match self.error {
                    Some(error) => Err(error),
                    None => Ok(self.result.unwrap_or(Value::Null)),
                };
                Ok(Kind::Response { id, outcome })
            }
            (None, None) => Err(MessageError::Malformed("neither id nor method".to_owned())),
        }
    }
}

/// Reads parameters into their type.
///
/// # Errors
/// An [`INVALID_PARAMS`] error that names the first mismatch.
pub fn parse_params<T: DeserializeOwned>(params: Value) -> Result<T, RpcError> {
    // An absent parameter object is an empty one.
    let params = if params.is_null() { Value::Object(Default::default()) } else { params };
    serde_json::from_value(params).map_err(|e| RpcError {
        code: INVALID_PARAMS,
        message: format!("invalid parameters: {e}"),
        data: None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn line(m: &Message) -> String {
        String::from_utf8(m.encode().unwrap()).unwrap()
    }

    #[test]
    fn messages_have_the_documented_form() {
        assert_eq!(
            line(&Message::request(7, "run", &json!({"a": 1}))),
            "{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"run\",\"params\":{\"a\":1}}\n"
        );
        assert_eq!(
            line(&Message::response(7, Ok(json!(1)))),
            "{\"jsonrpc\":\"2.0\",\"id\":7,\"result\":1}\n"
        );
    }

    #[test]
    fn messages_round_trip() {
        let read = |m: &Message| Message::decode(line(m).trim_end().as_bytes()).unwrap();
        assert!(matches!(read(&Message::request(1, "m", &json!(null))), Kind::Request { id: 1, .. }));
        assert!(matches!(read(&Message::notification("n", &json!([]))), Kind::Notification { .. }));
        let error = RpcError::failed("no");
        assert_eq!(
            read(&Message::response(2, Err(error.clone()))),
            Kind::Response { id: 2, outcome: Err(error) }
        );
    }

    #[test]
    fn an_oversized_message_is_refused_at_the_sender() {
        let big = "x".repeat(MESSAGE_MAX);
        assert!(matches!(Message::notification("n", &big).encode(), Err(MessageError::TooLarge(_))));
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Message::decode(&bytes).is_err());
        }
    }
}
