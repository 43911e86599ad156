//! Root images.
