"""Videos in: sources, decoding, the prepared store, the order of training items; previews out.

`prepare` turns a source of videos into a store; `store` reads it; `dataset` feeds training from it.
"""
