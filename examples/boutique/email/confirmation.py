"""The confirmation that the customer gets: what was ordered, what it cost, and a mail that says so.

The file isn't called email.py, because Python's own library has a module of that name.
"""


def main(order):
    return {
        "order": order["id"],
        "lines": [
            {
                "product": line["product"],
                "name": line["details"]["name"],
                "quantity": line["quantity"],
                "price": line["details"]["price"],
                "cost": line["cost"],
            }
            for line in order["lines"]
        ],
        "shipping": order["shipping"],
        "total": order["total"],
        "payment": order["payment"],
        "recommendations": order.get("recommendations", []),
        "mail": {
            "to": order["customer"]["email"],
            "subject": f"Your order {order['id']}",
            "text": "\n".join(mail(order)),
        },
    }


def mail(order):
    customer, payment = order["customer"], order["payment"]
    address = customer["address"]
    yield f"Dear {customer['name']},"
    yield ""
    yield "thank you for your order:"
    yield ""
    for line in order["lines"]:
        yield row(f"{line['quantity']} x {line['details']['name']}", line["cost"])
    yield row(f"Shipping to {address['city']}, {address['country']}", order["shipping"]["cost"])
    yield row("Total", order["total"])
    yield ""
    yield f"Charged to your {payment['brand']} card ending in {payment['last_digits']}."
    if order.get("recommendations"):
        yield ""
        yield "You might also like:"
        yield from (row(f"- {each['name']}", each["price"]) for each in order["recommendations"])
    for ad in order.get("ads", []):
        yield ""
        yield ad["text"]


def row(text, money):
    return f"{text:<44} {money['amount']:>10} {money['currency']}"
