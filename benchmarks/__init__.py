"""How fast Onsight answers, beside what people use today; see README.md."""
