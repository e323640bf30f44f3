/**
 * Calls the models of a running server: `node dist/examples/calls.js [ADDRESS [MODEL]]`.
 *
 * Whatever the model takes, it gets random numbers, or as many texts.
 */
import {
  Client,
  type Datatype,
  HeadraceError,
  type Inputs,
  Tensor,
  type TensorMetadata,
} from "../src/index.js";

function randomTensor({ datatype, shape }: TensorMetadata): Tensor {
  const sizes = shape.map((size) => (size < 0 ? 1 : size));
  const count = sizes.reduce((product, size) => product * size, 1);
  const numbers = Array.from({ length: count }, () => Math.floor(Math.random() * 2));
  switch (datatype as Datatype) {
    case "FP32":
      return new Tensor(
        "FP32",
        sizes,
        Float32Array.from(numbers, () => Math.random()),
      );
    case "INT32":
      return new Tensor("INT32", sizes, Int32Array.from(numbers));
    case "INT64":
      return new Tensor("INT64", sizes, BigInt64Array.from(numbers, BigInt));
    case "UINT8":
      return new Tensor("UINT8", sizes, Uint8Array.from(numbers));
    case "BYTES":
      return Tensor.text(sizes, numbers.map(String));
    default:
      throw new Error(`this example makes no ${datatype}`);
  }
}

const [address = "127.0.0.1:8001", asked] = process.argv.slice(2);
const client = new Client(address);
try {
  const names = (await client.repositoryIndex(true)).map(({ name }) => name);
  const model = asked ?? names[0];
  if (model === undefined) {
    throw new Error(`${address} serves no model`);
  }
  const metadata = await client.modelMetadata(model);
  const inputs: Inputs = Object.fromEntries(metadata.inputs.map((t) => [t.name, randomTensor(t)]));
  const result = await client.infer(model, inputs, {
    deadlineMs: 1000,
    parameters: { headrace_explain: true },
  });
  for (const [name, tensor] of result.outputs) {
    console.log(
      `${model} ${result.version}: ${name} ${tensor.datatype} [${tensor.shape.join(", ")}]`,
    );
    console.log(tensor.data.slice(0, 8));
  }
  console.log(result.parameters);
} catch (error) {
  if (!(error instanceof HeadraceError)) {
    throw error;
  }
  console.error(error.message);
  process.exitCode = 1;
} finally {
  await client.close();
}
