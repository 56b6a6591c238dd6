//! Newline-delimited JSON: one document per line, ended by LF (a CR before it is whitespace of
//! the document and stays).

use super::{Documents, StreamEnd};

/// The line that is not complete yet.
#[derive(Debug, Default)]
pub(super) struct Ndjson {
    line: Vec<u8>,
}

impl Ndjson {
    pub(super) fn push(
        &mut self,
        mut bytes: &[u8],
        documents: &mut Documents,
        out: &mut Vec<u8>,
    ) -> Result<(), StreamEnd> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = bytes.split_at(end);
            self.extend(line, documents)?;
            self.finish(documents, out)?;
            out.push(b'\n');
            bytes = rest.get(1..).unwrap_or_default();
        }
        self.extend(bytes, documents)
    }

    /// Hands the line on without a line end.
    pub(super) fn finish(
        &mut self,
        documents: &mut Documents,
        out: &mut Vec<u8>,
    ) -> Result<(), StreamEnd> {
        let document = self.line.trim_ascii();
        if document.is_empty() || document == b"[DONE]" {
            out.extend_from_slice(&self.line);
        } else {
            let filtered = documents.filter(&self.line)?;
            out.extend_from_slice(&filtered);
        }
        self.line.clear();
        Ok(())
    }

    fn extend(&mut self, bytes: &[u8], documents: &Documents) -> Result<(), StreamEnd> {
        documents.check_size(self.line.len().saturating_add(bytes.len()))?;
        self.line.extend_from_slice(bytes);
        Ok(())
    }
}
