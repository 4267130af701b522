"""The spool: rows on disk until their destination has acknowledged them."""
