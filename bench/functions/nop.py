"""The least that a function can do: the answer that every system is measured with."""


def main(params):
    return {"message": "hello, world!"}
