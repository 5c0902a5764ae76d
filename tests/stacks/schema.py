# Holds instances against a JSON Schema with the validator of the people who write the specification's tests; prints the first mistake
# of each, or null.
import json
import sys

from jsonschema import Draft202012Validator

job = json.loads(sys.argv[1])
with open(job["schema"]) as file:
    schema = json.load(file)
Draft202012Validator.check_schema(schema)
validator = Draft202012Validator(schema)
with open(job["instances"]) as file:
    instances = json.load(file)
report = {}
for name, instance in instances:
    found = next(validator.iter_errors(instance), None)
    report[name] = None if found is None else f"{found.json_path}: {found.message}"
print(json.dumps(report))
