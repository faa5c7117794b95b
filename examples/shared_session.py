"""A shared session: one conversation, many threads; each reads the answer to its own question.

Prints::

    everybody has the right answer: True
    turns, in the order of service: [1, 2, 3, 4, 5, 6, 7, 8]
    the context was added in turn 9
    content blocks: What is in this picture?
    what the conversation was told last: ['The user is in Rome.', 'What is in this picture?']
"""

from concurrent.futures import ThreadPoolExecutor

from soloist import AssistantMessage, Prompt, ResultMessage, Supervisor, TextBlock

PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
)
blocks = [
    {"type": "text", "text": "What is in this picture?"},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}},
]


def ask(prompt: Prompt) -> tuple[str, int]:
    """From any thread, at any time: the text of the answer, and the number of the turn."""
    text, turn = "", 0
    for message in sup.shared("support-42").query_and_receive(prompt, timeout_s=10):
        if isinstance(message, AssistantMessage):
            text += "".join(b.text for b in message.content if isinstance(b, TextBlock))
        elif isinstance(message, ResultMessage):
            turn = message.num_turns
    return text, turn


with Supervisor(size=1, options={"recall_on": "What did I say?"}) as sup:
    questions = [f"question {number}" for number in range(8)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, questions))
    print("everybody has the right answer:", [text for text, _ in answers] == questions)
    print("turns, in the order of service:", sorted(turn for _, turn in answers))

    added = sup.shared("support-42").query("The user is in Rome.")  # a Future: nobody waits
    text, _ = ask(blocks)
    print("the context was added in turn", added.result().num_turns)
    print("content blocks:", text)

    said, _ = ask("What did I say?")
    print("what the conversation was told last:", said.splitlines()[-2:])
