"""What a page of HTML holds."""

import html.parser


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data
