"""The smallest function: a JSON object (or form fields, or query parameters) in, a JSON object out."""


def main(params):
    name = params.get("name", "world")
    return {"greeting": f"Hello, {name}!"}
