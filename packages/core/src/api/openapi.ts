import { type } from 'arktype'
import { CheckpointName, ErrorBody, Path, TensorName, UpdateId, Url } from './bounds.ts'
import * as checkpoint from './checkpoint-schemas.ts'
import { EngineMapAnswer } from './engine-map-schemas.ts'
import { Metas } from './metas-schemas.ts'
import { StatusAnswer } from './status-schemas.ts'
import * as update from './update-schemas.ts'

interface QueryParameter {
  readonly schema: type.Any
  readonly summary: string
  readonly required?: true
}

/** One route of the daemon. A schema is named by its key in {@link SCHEMAS}. */
export interface Route {
  readonly method: 'get' | 'post' | 'delete'
  /** Parameters in braces: `name` of a checkpoint, `id` of an update. */
  readonly path: string
  readonly summary: string
  readonly query?: Readonly<Record<string, QueryParameter>>
  readonly request?: SchemaName
  /** false: the body may be empty. */
  readonly requestRequired?: boolean
  /** HTTP status to the answer's schema; null: an empty object. */
  readonly answers: Readonly<Record<number, SchemaName | null>>
  /** Server-sent events whose `data:` is the answer's schema. */
  readonly events?: boolean
}

const SCHEMAS = {
  RegisterRequest: checkpoint.RegisterRequest,
  RegisterAnswer: checkpoint.RegisterAnswer,
  PullRequest: checkpoint.PullRequest,
  DropAnswer: checkpoint.DropAnswer,
  GatherAnswer: checkpoint.GatherAnswer,
  CheckpointsAnswer: checkpoint.CheckpointsAnswer,
  CheckpointDetail: checkpoint.CheckpointDetail,
  BuffersRequest: checkpoint.BuffersRequest,
  BuffersAnswer: checkpoint.BuffersAnswer,
  TensorsRequest: checkpoint.TensorsRequest,
  UpdateRequest: update.UpdateRequest,
  UpdateReport: update.UpdateReport,
  UpdateState: update.UpdateState,
  UpdateEvent: update.UpdateEvent,
  TraceAnswer: update.TraceAnswer,
  AbortRequest: update.AbortRequest,
  Metas,
  StatusAnswer,
  EngineMapAnswer,
  ErrorBody,
} as const satisfies Record<string, type.Any>

export type SchemaName = keyof typeof SCHEMAS

const CHECKPOINT = '/v1/checkpoints/{name}'

/** Every route of the daemon; a test of the server compares it with what is served. */
export const ROUTES: readonly Route[] = [
  {
    method: 'post',
    path: `${CHECKPOINT}/files`,
    summary: 'Register safetensors files; an empty list is fine',
    request: 'RegisterRequest',
    answers: { 200: 'RegisterAnswer', 202: 'RegisterAnswer' },
  },
  {
    method: 'delete',
    path: CHECKPOINT,
    summary: 'Drop a checkpoint; 200 also when there was none',
    query: {
      force: { schema: type('boolean'), summary: 'Return its pinned memory to the system' },
    },
    answers: { 200: 'DropAnswer' },
  },
  {
    method: 'post',
    path: `${CHECKPOINT}/gather-metas`,
    summary: 'Gather what all owners hold; an update without it gathers itself',
    answers: { 200: 'GatherAnswer' },
  },
  {
    method: 'post',
    path: `${CHECKPOINT}/update`,
    summary: 'Move the weights into the engines',
    request: 'UpdateRequest',
    answers: { 200: 'UpdateReport', 202: 'UpdateState' },
  },
  {
    method: 'get',
    path: '/v1/healthz',
    summary: 'Whether the daemon is there',
    answers: { 200: null },
  },
  {
    method: 'get',
    path: '/v1/metas',
    summary: 'Where the owners hold what, to be saved for a join',
    answers: { 200: 'Metas' },
  },
  {
    method: 'post',
    path: '/v1/metas',
    summary: 'Load metas that were saved',
    request: 'Metas',
    answers: { 200: null },
  },
  {
    method: 'post',
    path: `${CHECKPOINT}/buffers`,
    summary:
      'Shared-memory regions that a trainer writes its tensors into; with `hold`, until its connection ends',
    request: 'BuffersRequest',
    answers: { 200: 'BuffersAnswer' },
  },
  {
    method: 'post',
    path: `${CHECKPOINT}/tensors`,
    summary: 'Register what a trainer has written into its regions',
    request: 'TensorsRequest',
    answers: { 200: 'RegisterAnswer' },
  },
  {
    method: 'post',
    path: `${CHECKPOINT}/pull`,
    summary: 'Keep a copy of what the daemons of a cluster hold; over a Unix socket only',
    request: 'PullRequest',
    answers: { 200: 'RegisterAnswer' },
  },
  {
    method: 'get',
    path: '/v1/checkpoints',
    summary: 'What is held',
    answers: { 200: 'CheckpointsAnswer' },
  },
  {
    method: 'get',
    path: CHECKPOINT,
    summary: 'One checkpoint with its tensors',
    answers: { 200: 'CheckpointDetail' },
  },
  {
    method: 'get',
    path: '/v1/status',
    summary: 'Devices, ranks, engines, memory and the running update',
    answers: { 200: 'StatusAnswer' },
  },
  {
    method: 'get',
    path: '/v1/engine-map',
    summary: 'Where an engine that takes direct updates has told its weights lie, rank by rank',
    query: {
      url: { schema: Url, summary: "Any URL of the engine's server", required: true },
      uds: { schema: Path, summary: 'Unix socket that the engine listens at' },
      tensor: { schema: TensorName, summary: 'Tell the copies of this tensor too' },
    },
    answers: { 200: 'EngineMapAnswer' },
  },
  {
    method: 'get',
    path: '/v1/updates/{id}',
    summary: 'An update that waits, runs or is one of the last 100',
    answers: { 200: 'UpdateState' },
  },
  {
    method: 'get',
    path: '/v1/updates/{id}/events',
    summary: 'Its progress as server-sent events, until it has ended',
    answers: { 200: 'UpdateEvent' },
    events: true,
  },
  {
    method: 'get',
    path: '/v1/updates/{id}/trace',
    summary: 'When each stage of each rank had work, of one of the last 10 that have ended',
    answers: { 200: 'TraceAnswer' },
  },
  {
    method: 'post',
    path: '/v1/updates/{id}/abort',
    summary: 'End an update',
    request: 'AbortRequest',
    requestRequired: false,
    answers: { 200: 'UpdateState' },
  },
  {
    method: 'get',
    path: '/v1/openapi.json',
    summary: 'This document',
    answers: { 200: null },
  },
]

export interface OpenApiDocument {
  openapi: '3.1.0'
  info: { title: string; version: string; license: { name: string; identifier: string } }
  paths: Record<string, Record<string, unknown>>
  components: { schemas: Record<string, unknown>; securitySchemes: Record<string, unknown> }
  security: Record<string, string[]>[]
}

/**
 * The OpenAPI 3.1 document of all routes, its schemas made from the ArkType ones that check the
 * requests.
 *
 * @param version of the program
 */
export function openApi(version: string): OpenApiDocument {
  const paths: OpenApiDocument['paths'] = {}
  for (const route of ROUTES) {
    paths[route.path] ??= {}
    const path = paths[route.path] as Record<string, unknown>
    path[route.method] = operation(route)
  }
  const schemas: Record<string, unknown> = {}
  for (const [name, schema] of Object.entries(SCHEMAS)) schemas[name] = jsonSchema(schema)
  return {
    openapi: '3.1.0',
    info: { title: 'ckpt', version, license: { name: 'MIT', identifier: 'MIT' } },
    paths,
    components: { schemas, securitySchemes: { token: { type: 'http', scheme: 'bearer' } } },
    // the private Unix socket needs no token, TCP does
    security: [{}, { token: [] }],
  }
}

function operation(route: Route): Record<string, unknown> {
  const responses: Record<string, unknown> = { default: answer('An error', 'ErrorBody') }
  for (const [status, name] of Object.entries(route.answers)) {
    const mediaType = route.events ? 'text/event-stream' : 'application/json'
    responses[status] = answer(status === '202' ? 'Accepted' : 'Done', name, mediaType)
  }
  const parameters = [...pathParameters(route.path), ...queryParameters(route)]
  const body = route.request && {
    required: route.requestRequired ?? true,
    content: { 'application/json': { schema: reference(route.request) } },
  }
  return {
    operationId: operationId(route),
    summary: route.summary,
    ...(parameters.length > 0 && { parameters }),
    ...(body && { requestBody: body }),
    responses,
  }
}

function answer(description: string, name: SchemaName | null, mediaType = 'application/json') {
  const schema = name === null ? { type: 'object' } : reference(name)
  return { description, content: { [mediaType]: { schema } } }
}

function pathParameters(path: string): unknown[] {
  const parameters = { name: CheckpointName, id: UpdateId }
  return Object.entries(parameters)
    .filter(([name]) => path.includes(`{${name}}`))
    .map(([name, schema]) => ({
      name,
      in: 'path',
      required: true,
      schema: jsonSchema(schema),
    }))
}

function queryParameters(route: Route): unknown[] {
  return Object.entries(route.query ?? {}).map(([name, { schema, summary, required }]) => ({
    name,
    in: 'query',
    ...(required && { required }),
    description: summary,
    schema: jsonSchema(schema),
  }))
}

/** `POST /v1/checkpoints/{name}/gather-metas` is `post_checkpoints_name_gather_metas`. */
function operationId(route: Route): string {
  const words = route.path.replace('/v1/', '').split(/[^A-Za-z0-9]+/)
  return [route.method, ...words.filter(Boolean)].join('_')
}

function reference(name: SchemaName): { $ref: string } {
  return { $ref: `#/components/schemas/${name}` }
}

function jsonSchema(schema: type.Any): Record<string, unknown> {
  const { $schema: _, ...rest } = schema.toJsonSchema() as Record<string, unknown>
  return rest
}
