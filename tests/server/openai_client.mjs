// The official JavaScript client against a running server. In a folder where `npm install openai` was run:
//   node PATH/openai_client.mjs http://127.0.0.1:8000/v1
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const { OpenAI } = createRequire(`${process.cwd()}/`)("openai");

const client = new OpenAI({ baseURL: process.argv[2], apiKey: process.env.PERSONAVEC_API_KEY ?? "none", maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "Hi there" }];
const asked = { model, messages, max_tokens: 8, seed: 3 };

const whole = await client.chat.completions.create({ ...asked, logprobs: true, persona: { steering: [] } });
assert.ok(whole.choices[0].persona.pieces.join("") === whole.choices[0].message.content);
assert.equal((await client.models.retrieve(model)).id, model);

let text = "";
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
  text += chunk.choices[0]?.delta.content ?? "";
}
assert.equal(text, whole.choices[0].message.content);

const helper = client.chat.completions.stream({ ...asked, logprobs: true, stream_options: { include_usage: true } });
const final = await helper.finalChatCompletion();
assert.equal(final.choices[0].message.content, whole.choices[0].message.content);
assert.equal(final.choices[0].logprobs.content.length, whole.choices[0].logprobs.content.length);
assert.deepEqual(final.usage.completion_tokens, whole.usage.completion_tokens);

const completion = await client.completions.create({ model, prompt: ["Once", "Twice"], max_tokens: 4 });
assert.equal(completion.choices.length, 2);

const response = await client.responses.create({ model, input: "Hi there", max_output_tokens: 8, seed: 3 });
assert.equal(response.output_text, whole.choices[0].message.content);
let streamed = "";
for await (const event of await client.responses.create({ model, input: "Hi there", max_output_tokens: 8, seed: 3, stream: true })) {
  if (event.type === "response.output_text.delta") streamed += event.delta;
}
assert.equal(streamed, response.output_text);
const helped = client.responses.stream({ model, input: "Hi there", max_output_tokens: 8, seed: 3 });
assert.equal((await helped.finalResponse()).output_text, response.output_text);

await assert.rejects(client.chat.completions.create({ ...asked, temperature: 9 }), OpenAI.BadRequestError);
const abort = new AbortController();
const left = await client.chat.completions.create({ ...asked, max_tokens: 150, stream: true }, { signal: abort.signal });
for await (const _ of left) { abort.abort(); break; }
console.log("all well");
