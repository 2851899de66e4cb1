-- The knowledge base, version 1. The chunks of a document in the order of "index", joined, are the cleaned document: what a
-- passage repeats of the chunk before it is only counted (overlap), and added by the view passages.

CREATE TABLE documents (
    id INTEGER PRIMARY KEY,
    path TEXT NOT NULL UNIQUE,      -- absolute posix path of a file, or NAME:ID of what was imported
    root TEXT NOT NULL,             -- what the user named: what is missing below it at the next ingest is marked removed
    hash TEXT NOT NULL,             -- SHA-256 of the file's bytes
    title TEXT NOT NULL,
    type TEXT NOT NULL,             -- pdf, docx, markdown, ...
    language TEXT,                  -- ISO 639-1; NULL where it is not clear
    added TEXT NOT NULL,            -- ISO 8601, UTC
    bytes INTEGER NOT NULL,
    settings TEXT NOT NULL,         -- hash of how it was read, cleaned and cut: a change reads the file anew
    cleaned TEXT NOT NULL,          -- JSON: what cleaning took out, counted by kind
    removed TEXT                    -- when the file was found missing; its chunks are out of force
);

CREATE TABLE chunks (
    id INTEGER PRIMARY KEY,
    document INTEGER NOT NULL REFERENCES documents(id) ON DELETE CASCADE,
    "index" INTEGER NOT NULL,           -- from 0
    text TEXT NOT NULL,
    tokens INTEGER NOT NULL,            -- of the passage: overlap and text
    heading TEXT NOT NULL,              -- path of headings, joined by ' > '
    page INTEGER,                       -- first page, from 1, where the source has pages
    start INTEGER NOT NULL,             -- span in the cleaned document, in characters
    "end" INTEGER NOT NULL,
    overlap INTEGER NOT NULL,           -- characters at the end of the chunk before that belong to the passage
    UNIQUE (document, "index")
);

-- What the user wrote in place of a chunk's text; the chunk's own text stays beside it. An empty text takes the chunk out of force.
CREATE TABLE edits (
    chunk INTEGER PRIMARY KEY REFERENCES chunks(id) ON DELETE CASCADE,
    text TEXT NOT NULL,
    tokens INTEGER NOT NULL,
    edited TEXT NOT NULL                -- ISO 8601, UTC
);

-- Edits whose chunk is gone, since its file changed there: kept, for a person to look at.
CREATE TABLE orphans (
    id INTEGER PRIMARY KEY,
    document INTEGER NOT NULL REFERENCES documents(id) ON DELETE CASCADE,
    original TEXT NOT NULL,             -- the chunk's own text
    text TEXT NOT NULL,                 -- the edit
    edited TEXT NOT NULL                -- ISO 8601, UTC
);

-- Of the whole store: 'model' names the tokenizer that counted the tokens.
CREATE TABLE about (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

-- The chunks in force, edits included: what training, search and synthesis read.
CREATE VIEW current AS
SELECT chunks.id, chunks.document, documents.path, documents.title, chunks."index",
       coalesce(edits.text, chunks.text) AS text, coalesce(edits.tokens, chunks.tokens) AS tokens,
       chunks.heading, chunks.page, chunks.start, chunks."end", chunks.overlap, edits.text IS NOT NULL AS edited
FROM chunks JOIN documents ON documents.id = chunks.document LEFT JOIN edits ON edits.chunk = chunks.id
WHERE documents.removed IS NULL AND coalesce(edits.text, chunks.text) <> '';

-- The same with the overlap in front.
CREATE VIEW passages AS
SELECT current.*, coalesce((
    SELECT substr(before.text, -current.overlap) FROM current AS before
    WHERE current.overlap > 0 AND before.document = current.document AND before."index" = current."index" - 1
), '') || current.text AS passage
FROM current;

CREATE VIEW searched AS
SELECT chunks.id, coalesce(edits.text, chunks.text) AS text, chunks.heading
FROM chunks LEFT JOIN edits ON edits.chunk = chunks.id;

CREATE VIRTUAL TABLE search USING fts5(text, heading, content = 'searched', content_rowid = 'id', tokenize = 'porter unicode61');
-- Bytes of the index that are gathered before they are written: with the 1 MB that is usual, indexing takes half as long again.
INSERT INTO search(search, rank) VALUES ('hashsize', 16777216);
-- Its parts are merged sixteen at a time, when there are sixteen, not four: a fifth less work, and a search looks into more of them.
INSERT INTO search(search, rank) VALUES ('automerge', 0);

-- New chunks are put into the index by Store.put, many at a time.
CREATE TRIGGER edit_added AFTER INSERT ON edits BEGIN
    INSERT INTO search(search, rowid, text, heading) SELECT 'delete', id, text, heading FROM chunks WHERE id = new.chunk;
    INSERT INTO search(rowid, text, heading) SELECT id, new.text, heading FROM chunks WHERE id = new.chunk;
END;
CREATE TRIGGER edit_changed AFTER UPDATE OF text ON edits BEGIN
    INSERT INTO search(search, rowid, text, heading) SELECT 'delete', id, old.text, heading FROM chunks WHERE id = old.chunk;
    INSERT INTO search(rowid, text, heading) SELECT id, new.text, heading FROM chunks WHERE id = new.chunk;
END;
CREATE TRIGGER edit_dropped AFTER DELETE ON edits BEGIN
    INSERT INTO search(search, rowid, text, heading) SELECT 'delete', id, old.text, heading FROM chunks WHERE id = old.chunk;
    INSERT INTO search(rowid, text, heading) SELECT id, text, heading FROM chunks WHERE id = old.chunk;
END;
-- The edit goes first, so that the index holds the chunk's own text again when that is taken out.
CREATE TRIGGER chunk_dropped BEFORE DELETE ON chunks BEGIN
    DELETE FROM edits WHERE chunk = old.id;
    INSERT INTO search(search, rowid, text, heading) VALUES ('delete', old.id, old.text, old.heading);
END;

-- Synthesis: a job is a plan of tasks, each at most once; a task makes rows; a row that a gate refused is kept with its reason.
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,             -- qa, pairs, expand, commands
    key TEXT NOT NULL UNIQUE,       -- hash of what decides its rows: another setting is another job
    settings TEXT NOT NULL,         -- JSON
    begun TEXT NOT NULL,            -- ISO 8601, UTC
    ended TEXT,
    calls INTEGER NOT NULL DEFAULT 0,
    prompt_tokens INTEGER NOT NULL DEFAULT 0,
    completion_tokens INTEGER NOT NULL DEFAULT 0,
    cost REAL NOT NULL DEFAULT 0    -- US dollars
);
CREATE TABLE tasks (
    id INTEGER PRIMARY KEY,
    job INTEGER NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
    number INTEGER NOT NULL,        -- place in the plan
    chunk INTEGER REFERENCES chunks(id) ON DELETE SET NULL,
    style TEXT NOT NULL,
    split TEXT NOT NULL,            -- train, valid, test: decided by document
    request TEXT NOT NULL DEFAULT '{}',  -- JSON: what else the task needs
    state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'done', 'failed')),
    attempts INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    UNIQUE (job, number)
);
CREATE INDEX open_tasks ON tasks(job, state, number);
CREATE TABLE rows (
    id INTEGER PRIMARY KEY,
    task INTEGER NOT NULL REFERENCES tasks(id) ON DELETE CASCADE,
    number INTEGER NOT NULL,        -- place in the task's answer
    content TEXT NOT NULL,          -- JSON: the row as it is written to the data file, provenance included
    verdict TEXT NOT NULL CHECK (verdict IN ('accepted', 'rejected')),
    gate TEXT,                      -- the gate that refused it
    reason TEXT,
    reviewed TEXT,                  -- accept, edit or reject, where a person looked
    UNIQUE (task, number)
);
