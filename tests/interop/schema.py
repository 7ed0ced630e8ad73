"""Judges configurations by the schema that `portway schema` prints, with a validator that nobody here wrote.

    python schema.py SCHEMA good FILE...     each must be valid
    python schema.py SCHEMA keys             each key of the schema: a misspelt neighbour and a wrong type are refused
"""

import json
import sys
import tomllib

from jsonschema import Draft202012Validator


def tables(schema, path=()):
    """Every table of the schema with the way to it."""
    yield path, schema
    for key, inner in schema.get("properties", {}).items():
        if "properties" in inner:
            yield from tables(inner, (*path, key))
        elif "properties" in inner.get("items", {}):
            yield from tables(inner["items"], (*path, [key]))


def inside(path, table):
    """A document with this table at that place."""
    for step in reversed(path):
        table = {step[0]: [table]} if isinstance(step, list) else {step: table}
    return table


def errors_at(validator, document, key):
    """What the validator says about this key, and not about what else is missing."""
    return [e for e in validator.iter_errors(document) if key in e.absolute_path or key in e.message]


def main():
    with open(sys.argv[1], "rb") as file:
        schema = json.load(file)
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    if sys.argv[2] == "good":
        for name in sys.argv[3:]:
            with open(name, "rb") as file:
                document = tomllib.load(file)
            found = [f"{name}: {list(e.absolute_path)}: {e.message}" for e in validator.iter_errors(document)]
            assert not found, "\n".join(found)
        print(len(sys.argv) - 3)
        return
    keys = 0
    for path, table in tables(schema):
        for key, of_key in table.get("properties", {}).items():
            keys += 1
            wrong = key + "_x"
            assert errors_at(validator, inside(path, {wrong: 1}), wrong), f"{path} takes {wrong}"
            # Nothing in a configuration is a list of lists.
            if of_key != {"type": "object"}:
                assert errors_at(validator, inside(path, {key: [[1]]}), key), f"{path} takes a list of lists for {key}"
            # `get`: not all keys have a range.
            for option in of_key.get("anyOf", []):
                if "maximum" in option:
                    more = inside(path, {key: option["maximum"] + 1})
                    assert errors_at(validator, more, key), f"{path} takes too much for {key}"
    print(keys)


main()
