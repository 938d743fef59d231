"""Where clips come from: UCF-101, folders, frame folders, caption tables, procedural clips.

A source looks at names only and opens no video. It yields a `Scan`: the clips found, in an order that does not
depend on the file system, and what could not even be listed.
"""
