"""The smallest function: a JSON object in, a JSON object out."""


def main(params):
    name = params.get("name", "world")
    return {"greeting": f"Hello, {name}!"}
