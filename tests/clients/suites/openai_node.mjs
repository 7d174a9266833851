// OpenAI's Node SDK against running servers; run by `node --test`, a `describe` a feature.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { describe, test } from "node:test";
import { pathToFileURL } from "node:url";

const require = createRequire(path.join(process.env.CLIENTS_NODE, "package.json"));
const { default: OpenAI } = await import(pathToFileURL(require.resolve("openai")));

const picture = readFileSync(path.join(process.env.CLIENTS_FOLDER, "screenshot.png")).toString("base64");
const dataUrl = `data:image/png;base64,${picture}`;
const near = process.env.CLIENTS_PICTURES;
const open = (name, options = {}) => new OpenAI({ baseURL: `${process.env["CLIENTS_" + name]}/v1`, apiKey: "none", ...options });
const peek = open("PEEK");
const fake = open("FAKE", { apiKey: process.env.CLIENTS_KEY });

const user = (text, ...urls) => [
  { role: "user", content: [...urls.map((url) => ({ type: "image_url", image_url: { url } })), { type: "text", text }] },
];
const schema = {
  type: "object",
  properties: { kind: { enum: ["form", "menu"], type: "string" }, busy: { type: "boolean" } },
  required: ["kind", "busy"],
  additionalProperties: false,
};
const weather = {
  type: "function",
  function: {
    name: "get_weather",
    parameters: { type: "object", properties: { place: { type: "string" } }, required: ["place"], additionalProperties: false },
  },
};

async function refused(work, kind) {
  try {
    await work();
  } catch (error) {
    assert.ok(error instanceof kind, `${error.name}: ${error.message}`);
    return error;
  }
  assert.fail("nothing was refused");
}

describe("chat", () => {
  test("an answer with its usage", async () => {
    const answer = await peek.chat.completions.create({ model: "peek", messages: user("hello"), max_tokens: 8 });
    assert.equal(answer.choices[0].message.role, "assistant");
    assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
  });
  test("the models", async () => {
    const names = [];
    for await (const model of peek.models.list()) names.push(model.id);
    assert.deepEqual(names, ["peek"]);
  });
});

describe("streaming", () => {
  test("it says what the plain answer says", async () => {
    const asked = { model: "peek", messages: user("Describe the screen.", dataUrl), temperature: 0 };
    const plain = await peek.chat.completions.create(asked);
    const stream = await peek.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } });
    let text = "";
    let usage = null;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, plain.choices[0].message.content);
    assert.equal(usage.completion_tokens, plain.usage.completion_tokens);
  });
  test("the SDK's helper folds it", async () => {
    const runner = peek.chat.completions.stream({ model: "peek", messages: user("hello"), max_tokens: 8 });
    assert.ok((await runner.finalChatCompletion()).choices[0].message);
  });
  test("closing it early leaves the server free", async () => {
    for (let count = 0; count < 20; count++) {
      const stream = await peek.chat.completions.create({ model: "peek", messages: user("hello"), stream: true });
      stream.controller.abort();
    }
    const answer = await peek.chat.completions.create({ model: "peek", messages: user("hello"), max_tokens: 2 });
    assert.equal(answer.choices.length, 1);
  });
});

describe("images", () => {
  test("a data URL and a picture on the web are the same picture", async () => {
    const said = new Set();
    for (const url of [dataUrl, `${near}/screenshot.png`]) {
      const asked = { model: "peek", messages: user("Describe the screen.", url), temperature: 0 };
      said.add((await peek.chat.completions.create(asked)).choices[0].message.content);
    }
    assert.equal(said.size, 1);
  });
});

describe("json_schema", () => {
  test("an answer is of the asked form", async () => {
    const response_format = { type: "json_schema", json_schema: { name: "screen", schema, strict: true } };
    const answer = await peek.chat.completions.parse({ model: "peek", messages: user("look", dataUrl), response_format });
    const screen = JSON.parse(answer.choices[0].message.content);
    assert.ok(["form", "menu"].includes(screen.kind));
    assert.equal(typeof screen.busy, "boolean");
  });
});

describe("tools", () => {
  test("a required call", async () => {
    const answer = await fake.chat.completions.create({
      model: "fake", messages: user("hello"), tools: [weather], tool_choice: "required",
    });
    assert.equal(answer.choices[0].finish_reason, "tool_calls");
    assert.equal(answer.choices[0].message.tool_calls[0].function.name, "get_weather");
  });
  test("the SDK's runner calls the function and sends its result back", async () => {
    const places = [];
    const named = { ...weather.function, parse: JSON.parse, function: ({ place }) => (places.push(place), "sunny") };
    const runner = fake.chat.completions.runTools({
      model: "fake", messages: [{ role: "user", content: "use get_weather" }], tools: [{ type: "function", function: named }],
    });
    assert.match(await runner.finalContent(), /sunny/);
    assert.equal(places.length, 1);
  });
  test("a streamed call", async () => {
    const runner = fake.chat.completions.stream({
      model: "fake", messages: user("hello"), tools: [weather], tool_choice: { type: "function", function: { name: "get_weather" } },
    });
    const [call] = (await runner.finalChatCompletion()).choices[0].message.tool_calls;
    assert.deepEqual(Object.keys(JSON.parse(call.function.arguments)), ["place"]);
  });
});

describe("responses", () => {
  test("a text", async () => {
    const answer = await peek.responses.create({ model: "peek", input: "hello", max_output_tokens: 16 });
    assert.equal(typeof answer.output_text, "string");
  });
  test("a stream", async () => {
    const kinds = [];
    for await (const event of await peek.responses.create({ model: "peek", input: "hello", max_output_tokens: 16, stream: true })) {
      kinds.push(event.type);
    }
    assert.equal(kinds[0], "response.created");
    assert.ok(["response.completed", "response.incomplete"].includes(kinds.at(-1)));
  });
  test("a call and its result go back", async () => {
    const asked = { model: "fake", tools: [{ type: "function", strict: true, ...weather.function }] };
    const history = [{ role: "user", content: "use get_weather" }];
    const first = await fake.responses.create({ ...asked, input: history });
    const result = { type: "function_call_output", call_id: first.output[0].call_id, output: "sunny" };
    const last = await fake.responses.create({ ...asked, input: [...history, ...first.output, result] });
    assert.match(last.output_text, /sunny/);
  });
});

describe("errors", () => {
  test("a wrong key", async () => {
    await refused(() => open("FAKE", { apiKey: "wrong" }).models.list(), OpenAI.AuthenticationError);
  });
  test("a model that is not there", async () => {
    const work = () => peek.chat.completions.create({ model: "gpt", messages: user("hello") });
    assert.equal((await refused(work, OpenAI.NotFoundError)).code, "model_not_found");
  });
  test("a picture that is none", async () => {
    const work = () => peek.chat.completions.create({ model: "peek", messages: user("look", "data:image/png;base64,aGk=") });
    assert.equal((await refused(work, OpenAI.BadRequestError)).param, "messages.0.content.0.image_url");
  });
});

describe("retries", () => {
  test("a full queue is an error at once and with retries an answer", async () => {
    let asked = 0;
    const counted = (...given) => ((asked += 1), fetch(...given));
    const narrow = open("NARROW", { maxRetries: 0, fetch: counted });
    const hello = { model: "fake", messages: user("hello"), max_tokens: 1 };
    // The one place in the queue is held for as long as the picture takes to come.
    const slow = { model: "fake", messages: user("look", `${near}/slow/screenshot.png`) };
    const held = narrow.chat.completions.create(slow, { maxRetries: 20 });
    let holding = true;
    held.finally(() => (holding = false));
    const error = await refused(async () => {
      while (holding) await narrow.chat.completions.create(hello);
    }, OpenAI.RateLimitError);
    assert.equal(error.code, "queue_full");
    asked = 0;
    const answer = await narrow.chat.completions.create(hello, { maxRetries: 20 });
    assert.ok(answer.choices[0].message.content);
    assert.ok(asked > 1);
    await held;
  });
});
