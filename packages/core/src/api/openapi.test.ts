import { describe, expect, test } from 'bun:test'
import { openApi, ROUTES } from './openapi.ts'

const document = JSON.parse(JSON.stringify(openApi('1.2.3')))

/** Every value of a key, anywhere in a document. */
function valuesOf(key: string, node: unknown): unknown[] {
  if (node === null || typeof node !== 'object') return []
  return Object.entries(node).flatMap(([name, value]) =>
    name === key ? [value, ...valuesOf(key, value)] : valuesOf(key, value),
  )
}

describe('the OpenAPI document', () => {
  test('has every route of the daemon', () => {
    const routes = Object.entries(document.paths).flatMap(([path, methods]) =>
      Object.keys(methods as object).map((method) => `${method} ${path}`),
    )
    expect(routes.sort()).toEqual([
      'delete /v1/checkpoints/{name}',
      'get /v1/checkpoints',
      'get /v1/checkpoints/{name}',
      'get /v1/engine-map',
      'get /v1/healthz',
      'get /v1/metas',
      'get /v1/openapi.json',
      'get /v1/status',
      'get /v1/updates/{id}',
      'get /v1/updates/{id}/events',
      'get /v1/updates/{id}/trace',
      'post /v1/checkpoints/{name}/buffers',
      'post /v1/checkpoints/{name}/files',
      'post /v1/checkpoints/{name}/gather-metas',
      'post /v1/checkpoints/{name}/pull',
      'post /v1/checkpoints/{name}/tensors',
      'post /v1/checkpoints/{name}/update',
      'post /v1/metas',
      'post /v1/updates/{id}/abort',
    ])
    expect(document.openapi).toBe('3.1.0')
    expect(document.info.version).toBe('1.2.3')
  })

  test('refers only to schemas that it has', () => {
    const references = valuesOf('$ref', document) as string[]
    expect(references.length).toBeGreaterThan(ROUTES.length)
    for (const reference of references) {
      expect(document.components.schemas).toHaveProperty(reference.split('/').slice(-1))
    }
  })

  test('says what the schemas check', () => {
    const { RegisterRequest, UpdateRequest, Metas } = document.components.schemas
    expect(RegisterRequest).toMatchObject({
      type: 'object',
      required: ['files'],
      additionalProperties: false,
      properties: { files: { type: 'array', items: { type: 'string', minLength: 1 } } },
    })
    expect(UpdateRequest.additionalProperties).toBe(false)
    expect(UpdateRequest.required).toBeUndefined()
    expect(UpdateRequest.properties.timeout).toMatchObject({ type: 'number', exclusiveMinimum: 0 })
    expect(Object.keys(Metas.patternProperties)).toHaveLength(1)
    expect(Metas.additionalProperties).toBe(false)
  })

  test('names each operation once, with its parameters', () => {
    const ids = valuesOf('operationId', document) as string[]
    expect(new Set(ids).size).toBe(ROUTES.length)
    const drop = document.paths['/v1/checkpoints/{name}'].delete
    expect(drop.parameters.map((one: { name: string }) => one.name)).toEqual(['name', 'force'])
    const { parameters } = document.paths['/v1/engine-map'].get
    expect(parameters).toMatchObject([
      { name: 'url', in: 'query', required: true, schema: { type: 'string', maxLength: 2048 } },
      { name: 'uds', in: 'query' },
      { name: 'tensor', in: 'query' },
    ])
    expect(parameters[1]).not.toHaveProperty('required')
    const events = document.paths['/v1/updates/{id}/events'].get
    expect(Object.keys(events.responses[200].content)).toEqual(['text/event-stream'])
  })
})
