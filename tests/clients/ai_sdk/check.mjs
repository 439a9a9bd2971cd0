// @ai-sdk/openai-compatible: text, whole and streamed; tool calls, whole and streamed; objects.
// @ai-sdk/openai, which uses /v1/responses: text, and results of tools, with and without stored items.
import assert from 'node:assert/strict'
import { createOpenAI } from '@ai-sdk/openai'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { generateObject, generateText, stepCountIs, streamObject, streamText, tool } from 'ai'
import { z } from 'zod'

const provider = createOpenAICompatible({
  name: 'paceline',
  baseURL: process.env.BASE_URL,
  includeUsage: true,
  supportsStructuredOutputs: true,
})
const options = { model: provider(process.env.MODEL), temperature: 0, maxRetries: 0, maxOutputTokens: 100 }
const failed = { onError: ({ error }) => { throw error } }
const prompt = 'What is the capital of France?'

const whole = await generateText({ ...options, prompt })
assert.match(whole.text, /Paris/)
assert.equal(whole.finishReason, 'stop')
assert.equal(whole.usage.totalTokens, whole.usage.inputTokens + whole.usage.outputTokens)

const stream = streamText({ ...options, ...failed, prompt })
const pieces = []
for await (const piece of stream.textStream) pieces.push(piece)
assert.ok(pieces.length > 3)
assert.equal(pieces.join(''), whole.text)
assert.equal((await stream.usage).outputTokens, whole.usage.outputTokens)

const inputSchema = z.strictObject({ city: z.string().max(20) })
const asked = {
  ...options,
  prompt: 'How is the weather in Paris?',
  tools: { weather: tool({ description: 'The weather of a city', inputSchema }) },
  toolChoice: { type: 'tool', toolName: 'weather' },
}
const called = await generateText(asked)
assert.equal(called.finishReason, 'tool-calls')
assert.deepEqual(called.toolCalls.map((call) => call.toolName), ['weather'])
inputSchema.parse(called.toolCalls[0].input)
const calling = streamText({ ...asked, ...failed })
assert.deepEqual((await calling.toolCalls).map((call) => call.input), called.toolCalls.map((call) => call.input))

const schema = z.strictObject({ name: z.string().max(20), age: z.int().min(0).max(150) })
const person = await generateObject({ ...options, schema, prompt: 'Ann is 30 years old.' })
assert.equal(person.object.age, 30)
const filling = streamObject({ ...options, ...failed, schema, prompt: 'Ann is 30 years old.' })
const states = []
for await (const state of filling.partialObjectStream) states.push(state)
assert.deepEqual(states.at(-1), person.object)

const responses = createOpenAI({ baseURL: process.env.BASE_URL, apiKey: '-' }).responses(process.env.MODEL)
const answer = streamText({ ...options, ...failed, model: responses, prompt })
assert.equal(await answer.text, whole.text)
for (const store of [true, false]) {
  let results = 0
  const execute = () => { results += 1; return 'sunny' }
  const done = await generateText({
    ...asked,
    model: responses,
    tools: { weather: tool({ description: 'The weather of a city', inputSchema, execute }) },
    stopWhen: stepCountIs(2),
    providerOptions: { openai: { store, parallelToolCalls: false } },
  })
  assert.deepEqual(done.steps.map((step) => step.finishReason), ['tool-calls', 'tool-calls'])
  assert.equal(results, 2)
}
