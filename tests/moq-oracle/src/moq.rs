//! The files of the codec, as in `src/transports/moq.rs`, and what compares them.

macro_rules! codec {
    ($($(#[$meta:meta])* $name:ident = $path:literal;)*) => {
        $($(#[$meta])* #[path = $path] mod $name;)*
    };
}

codec! {
    codec = "../../../src/transports/moq/codec.rs";
    codec_datagram = "../../../src/transports/moq/codec_datagram.rs";
    codec_fetch = "../../../src/transports/moq/codec_fetch.rs";
    codec_message = "../../../src/transports/moq/codec_message.rs";
    codec_name = "../../../src/transports/moq/codec_name.rs";
    codec_params = "../../../src/transports/moq/codec_params.rs";
    codec_property = "../../../src/transports/moq/codec_property.rs";
    #[cfg(test)] codec_samples = "../../../src/transports/moq/codec_samples.rs";
    codec_setup = "../../../src/transports/moq/codec_setup.rs";
    codec_stream = "../../../src/transports/moq/codec_stream.rs";
    codec_subgroup = "../../../src/transports/moq/codec_subgroup.rs";
    #[cfg(test)] codec_vectors = "../../../src/transports/moq/codec_vectors.rs";
    model = "../../../src/transports/moq/model.rs";
    model_codes = "../../../src/transports/moq/model_codes.rs";
    model_message = "../../../src/transports/moq/model_message.rs";
    model_names = "../../../src/transports/moq/model_names.rs";
    model_params = "../../../src/transports/moq/model_params.rs";
}

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod oracle_vectors;
